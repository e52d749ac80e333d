//! Fuzzes [`sock_fuzz::requirements`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(requirements);
