//! What the tables say, and what they compile to, on both architectures.

use std::fmt::Write;

use super::*;
use crate::bpf::{interpret, listing};

const ROLES: [Role; 4] = [Role::Instance, Role::Zygote, Role::Init, Role::Strict];
const BOTH: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

fn allowed(verdict: Option<&Verdict>) -> bool {
    matches!(verdict, Some(Verdict::Allow | Verdict::If(..)))
}

#[test]
fn a_zygote_may_what_an_instance_may_and_fork_into_a_slot() {
    let (instance, zygote) = (table(Role::Instance), table(Role::Zygote));
    let more: Vec<&str> = zygote.keys().filter(|n| instance.get(*n) != zygote.get(*n)).copied().collect();
    let mut expected = ENTER_AND_DROP.to_vec();
    expected.sort_unstable();
    assert_eq!(more, expected);
}

/// The kernel takes the stricter answer of two filters: seccomp(2).
#[test]
fn what_a_zygotes_child_adds_leaves_what_an_instance_may() {
    for architecture in BOTH {
        let (instance, zygote) = (program(Role::Instance, architecture), program(Role::Zygote, architecture));
        let added = difference(architecture);
        let arguments = [[0; 6], [u32::MAX; 6], [NEW_NAMESPACE; 6], [1; 6], [2; 6]];
        for number in (0..1024).chain([0x4000_0000, u32::MAX]) {
            for arguments in arguments {
                let answer =
                    |program: &Program| interpret(program, (architecture.audit(), number), arguments);
                let both =
                    if answer(&added) == libc::SECCOMP_RET_ALLOW { answer(&zygote) } else { answer(&added) };
                assert_eq!(both, answer(&instance), "{number} {arguments:?} on {architecture:?}");
            }
        }
        assert!(added.len() < instance.len() / 10, "{} instructions", added.len());
        let other = interpret(&added, (architecture.audit() + 1, 0), [0; 6]);
        assert_eq!(other, libc::SECCOMP_RET_KILL_PROCESS);
        let name = format!("program_after_zygote_{architecture:?}").to_lowercase();
        insta::assert_snapshot!(name, listing(&added));
    }
}

#[test]
fn each_call_of_the_kernel_is_allowed_or_has_a_reason_why_not() {
    let instance = table(Role::Instance);
    for (name, ..) in NUMBERS {
        let families = FAMILIES.iter().filter(|family| family.calls.contains(name)).count();
        let expected = usize::from(!allowed(instance.get(name)));
        assert_eq!(families, expected, "families of {name}, which is {:?}", instance.get(name));
    }
    assert!(reason("keyctl").is_some_and(|why| why.contains("not namespaced")));
    assert_eq!(reason("read"), None);
}

#[test]
fn each_name_is_one_that_the_kernel_has() {
    let families = FAMILIES.iter().flat_map(|family| family.calls.iter().copied());
    for name in ROLES.iter().flat_map(|role| table(*role).into_keys()).chain(families) {
        assert!(BOTH.iter().any(|architecture| architecture.number(name).is_some()), "{name}");
    }
    assert!(NUMBERS.is_sorted_by_key(|(name, ..)| name));
    for architecture in BOTH {
        let mut numbers: Vec<u32> =
            NUMBERS.iter().filter_map(|(name, ..)| architecture.number(name)).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "one number of {architecture:?} has two names");
    }
}

/// Those that the C library's crate has on both architectures, with any C library.
#[test]
fn the_numbers_are_the_c_librarys() {
    macro_rules! same {
        ($($name:ident)*) => { $(
            let name = stringify!($name).strip_prefix("SYS_").unwrap();
            assert_eq!(Architecture::NATIVE.number(name), Some(libc::$name as u32), "{name}");
        )* };
    }
    same![
        SYS_read SYS_write SYS_openat SYS_close SYS_mmap SYS_clone SYS_clone3 SYS_execve SYS_exit_group SYS_kill SYS_tkill SYS_tgkill
        SYS_socket SYS_socketpair SYS_setsockopt SYS_ioctl SYS_fcntl SYS_personality SYS_unshare SYS_setns SYS_mount SYS_umount2
        SYS_ptrace SYS_bpf SYS_keyctl SYS_io_uring_setup SYS_init_module SYS_prctl SYS_seccomp SYS_setresuid SYS_capset SYS_pidfd_open
        SYS_newfstatat SYS_futex SYS_wait4 SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_pidfd_send_signal SYS_mount_setattr
        SYS_landlock_restrict_self SYS_memfd_create SYS_shmget SYS_mq_open
    ];
}

#[test]
fn strict_allows_nothing_that_lean_does_not() {
    let (lean, strict) = (table(Role::Instance), table(Role::Strict));
    assert!(strict.iter().filter(|(_, v)| allowed(Some(v))).all(|(name, _)| allowed(lean.get(name))));
    let lost = lean.iter().filter(|(name, v)| allowed(Some(v)) && !allowed(strict.get(*name))).count();
    assert_eq!(lost, NOT_STRICT.len());
}

#[test]
fn the_filters_fit_the_kernel() {
    for (role, architecture) in ROLES.iter().flat_map(|role| BOTH.map(|one| (*role, one))) {
        let length = program(role, architecture).len();
        assert!(length < libc::BPF_MAXINSNS as usize, "{role:?} {architecture:?}");
    }
}

/// With arguments that pass every test of an argument.
#[test]
fn a_program_answers_with_its_architectures_numbers() {
    let harmless = [libc::AF_UNIX as u32, libc::SOCK_STREAM as u32, 0, 0, 0, 0];
    for (role, architecture) in ROLES.iter().flat_map(|role| BOTH.map(|one| (*role, one))) {
        let (program, table) = (program(role, architecture), table(role));
        let answer = |audit, number| interpret(&program, (audit, number), harmless);
        for (name, ..) in NUMBERS {
            let Some(number) = architecture.number(name) else { continue };
            let expected = match table.get(name) {
                Some(Verdict::Errno(errno)) => libc::SECCOMP_RET_ERRNO | u32::from(*errno),
                Some(Verdict::Allow) => libc::SECCOMP_RET_ALLOW,
                // All ones and 0 are Linux's own, AF_UNIX is neither; nor is it the signal that tells of a child's end.
                Some(Verdict::If(_, errno)) if ["personality", "clone"].contains(name) => {
                    libc::SECCOMP_RET_ERRNO | u32::from(*errno)
                }
                Some(Verdict::If(..)) => libc::SECCOMP_RET_ALLOW,
                None => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
            };
            assert_eq!(answer(architecture.audit(), number), expected, "{role:?} {architecture:?} {name}");
        }
        for other in BOTH.into_iter().filter(|other| *other != architecture) {
            let read = other.number("read").unwrap();
            assert_eq!(answer(other.audit(), read), libc::SECCOMP_RET_KILL_PROCESS, "{role:?} {other:?}");
        }
    }
}

#[test]
fn table_of_an_instance() {
    let instance = table(Role::Instance);
    let mut text = String::new();
    for (name, x86_64, aarch64) in NUMBERS {
        let [x86_64, aarch64] = [x86_64, aarch64].map(|n| n.map_or("-".into(), |n| n.to_string()));
        let verdict =
            instance.get(name).map_or("ENOSYS, unheard of".into(), |verdict| format!("{verdict:?}"));
        writeln!(text, "{name:24} {x86_64:>3} {aarch64:>3}  {verdict}").unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_other_roles_have() {
    let instance = table(Role::Instance);
    let mut text = String::new();
    for role in [Role::Zygote, Role::Strict] {
        writeln!(text, "{role:?}, other than an instance:").unwrap();
        for (name, verdict) in
            table(role).iter().filter(|(name, verdict)| instance.get(*name) != Some(verdict))
        {
            writeln!(text, "  {name:24} {verdict:?}").unwrap();
        }
    }
    writeln!(text, "Init: {}", table(Role::Init).into_keys().collect::<Vec<_>>().join(" ")).unwrap();
    insta::assert_snapshot!(text);
}

#[test]
fn programs_of_both_architectures() {
    for (role, architecture) in ROLES.iter().flat_map(|role| BOTH.map(|one| (*role, one))) {
        let name = format!("program_{role:?}_{architecture:?}").to_lowercase();
        insta::assert_snapshot!(name, listing(&program(role, architecture)));
    }
}
