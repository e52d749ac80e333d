//! sock-zygote
