//! Fuzzes [`sock_fuzz::record`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(record);
