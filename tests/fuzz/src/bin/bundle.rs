//! Fuzzes [`sock_fuzz::bundle`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(bundle);
