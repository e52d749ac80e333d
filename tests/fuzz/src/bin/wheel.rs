//! Fuzzes [`sock_fuzz::wheel`].
#![cfg_attr(fuzzing, no_main)]

sock_fuzz::target!(wheel);
