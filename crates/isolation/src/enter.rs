//! How a process without a capability forks into a slot: a few lines for its processor.
//!
//! setns(2) asks for SYS_ADMIN over the namespace that is entered. A process that holds no capability has it all the same
//! over a user namespace that its own uid has made (user_namespaces(7), "Capabilities"), but gives up the one that it
//! is in: a zygote that entered a slot would never get out again. So a second process enters, one that shares the zygote's
//! memory and is gone before the zygote goes on, and that one forks:
//!
//! ```text
//! zygote ── clone3(VM | VFORK | INTO_CGROUP) ──▶ helper: setns(user), setns(pid), fork() ──▶ child, a copy of the zygote
//!   └──────────── goes on once the helper is gone ◀┄┄ exits
//! ```
//! `fork` is the C library's, so that its handlers run and it knows its thread's number. The child is born in the slot's
//! cgroup: joining it would wait for a grace period of RCU.
//!
//! The code is bytes without relocations, so that a confined process maps them from a file, executable and not writable.

/// The code of `long enter_and_fork(struct clone_args *args, size_t size, int user, int pids, pid_t (*fork)(void), long *child)`.
///
/// Returns 0 in the child; in the caller the helper's number, which is to be waited for, or a negative error number. After
/// that `*child` is the child's number, or a negative error number: -EAGAIN for whatever kept `fork` from it.
pub fn code() -> &'static [u8] {
    imp::code()
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod imp {
    std::arch::global_asm!(
        ".pushsection .rodata.sock_enter_and_fork, \"a\"",
        ".globl sock_enter_and_fork_start, sock_enter_and_fork_end",
        ".hidden sock_enter_and_fork_start, sock_enter_and_fork_end",
        "sock_enter_and_fork_start:",
        // What is needed after the calls, where calls leave it alone. Five words, which align the stack for one.
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "mov ebx, edx",
        "mov ebp, ecx",
        "mov r12, r8",
        "mov r13, r9",
        "mov eax, 435", // clone3
        "syscall",
        "test rax, rax",
        "jnz 3f",
        // The helper: on the zygote's stack, below its frame, while the kernel holds the zygote.
        "mov edi, ebx",
        "mov esi, 0x10000000", // CLONE_NEWUSER
        "mov eax, 308",        // setns
        "syscall",
        "test rax, rax",
        "js 2f",
        "mov edi, ebp",
        "mov esi, 0x20000000", // CLONE_NEWPID
        "mov eax, 308",
        "syscall",
        "test rax, rax",
        "js 2f",
        "call r12",
        "movsxd rax, eax",
        "test eax, eax",
        "jz 3f",
        "jns 2f",
        "mov rax, -11", // EAGAIN: why is in errno, which nobody asks for
        "2:",
        "mov [r13], rax",
        "xor edi, edi",
        "mov eax, 60", // exit
        "syscall",
        "ud2",
        "3:",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        "sock_enter_and_fork_end:",
        ".popsection",
    );

    unsafe extern "C" {
        static sock_enter_and_fork_start: u8;
        static sock_enter_and_fork_end: u8;
    }

    pub(super) fn code() -> &'static [u8] {
        let (start, end) = (&raw const sock_enter_and_fork_start, &raw const sock_enter_and_fork_end);
        // SAFETY: both are labels of the one block above, the second after the first, and what is between them is
        // read-only data that is initialised and lives as long as the program. It is only read here.
        unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    /// None is written yet for this processor: a zygote then says so instead of forking.
    pub(super) fn code() -> &'static [u8] {
        &[]
    }
}
