//! Fuzzes [`sock_fuzz::frames`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(frames);
