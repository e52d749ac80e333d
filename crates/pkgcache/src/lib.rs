//! sock-pkgcache
