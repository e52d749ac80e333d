//! sock-gateway
