//! sock-isolation
