//! Fuzzes [`sock_fuzz::launcher`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(launcher);
