//! Fuzzes [`sock_fuzz::signature`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(signature);
