"""Every system call number there is, tried from inside: the set that answers is pinned, name by name."""

import errno
import platform

import pytest

from rlm_sandbox.container import seccomp

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64"),
]

LAST = 1023
"""Numbers end at 467 in Linux 6.18; those of the x32 ABI (from 512) and what is yet to come must be closed too."""

X32 = [(1 << 30) + number for number in (0, 1, 41, 59)]

ANSWERS = """
    0:read 1:write 2:open 3:close 4:stat 5:fstat 6:lstat 7:poll 8:lseek 9:mmap 10:mprotect 11:munmap 12:brk
    13:rt_sigaction 14:rt_sigprocmask 15:rt_sigreturn 16:ioctl 17:pread64 18:pwrite64 19:readv 20:writev 21:access
    22:pipe 23:select 24:sched_yield 25:mremap 26:msync 27:mincore 28:madvise 32:dup 33:dup2 34:pause 35:nanosleep
    36:getitimer 37:alarm 38:setitimer 39:getpid 40:sendfile 44:sendto 45:recvfrom 46:sendmsg 47:recvmsg 48:shutdown
    51:getsockname 52:getpeername 53:socketpair 55:getsockopt 56:clone 57:fork 58:vfork 59:execve 60:exit 61:wait4
    62:kill 63:uname 72:fcntl 73:flock 74:fsync 75:fdatasync 76:truncate 77:ftruncate 78:getdents 79:getcwd 80:chdir
    81:fchdir 82:rename 83:mkdir 84:rmdir 85:creat 86:link 87:unlink 88:symlink 89:readlink 90:chmod 91:fchmod
    92:chown 93:fchown 94:lchown 95:umask 96:gettimeofday 97:getrlimit 98:getrusage 99:sysinfo 100:times 102:getuid
    104:getgid 107:geteuid 108:getegid 109:setpgid 110:getppid 111:getpgrp 112:setsid 115:getgroups 118:getresuid
    120:getresgid 121:getpgid 124:getsid 125:capget 127:rt_sigpending 128:rt_sigtimedwait 129:rt_sigqueueinfo
    130:rt_sigsuspend 131:sigaltstack 132:utime 135:personality 137:statfs 138:fstatfs 140:getpriority
    143:sched_getparam 145:sched_getscheduler 146:sched_get_priority_max 147:sched_get_priority_min
    148:sched_rr_get_interval 149:mlock 150:munlock 157:prctl 158:arch_prctl 160:setrlimit 186:gettid 187:readahead
    191:getxattr 192:lgetxattr 193:fgetxattr 194:listxattr 195:llistxattr 196:flistxattr 200:tkill 201:time
    202:futex 203:sched_setaffinity 204:sched_getaffinity 213:epoll_create 217:getdents64 218:set_tid_address
    219:restart_syscall 221:fadvise64 222:timer_create 223:timer_settime 224:timer_gettime 225:timer_getoverrun
    226:timer_delete 228:clock_gettime 229:clock_getres 230:clock_nanosleep 231:exit_group 232:epoll_wait
    233:epoll_ctl 234:tgkill 235:utimes 239:get_mempolicy 247:waitid 257:openat 258:mkdirat 260:fchownat
    261:futimesat 262:newfstatat 263:unlinkat 264:renameat 265:linkat 266:symlinkat 267:readlinkat 268:fchmodat
    269:faccessat 270:pselect6 271:ppoll 273:set_robust_list 274:get_robust_list 280:utimensat 281:epoll_pwait
    283:timerfd_create 284:eventfd 285:fallocate 286:timerfd_settime 287:timerfd_gettime 290:eventfd2
    291:epoll_create1 292:dup3 293:pipe2 295:preadv 296:pwritev 297:rt_tgsigqueueinfo 302:prlimit64 309:getcpu
    315:sched_getattr 316:renameat2 318:getrandom 324:membarrier 325:mlock2 326:copy_file_range 327:preadv2
    328:pwritev2 332:statx 334:rseq 424:pidfd_send_signal 434:pidfd_open 436:close_range 437:openat2 439:faccessat2
    441:epoll_pwait2 449:futex_waitv 452:fchmodat2
"""
"""``number:name`` of all that is allowed in some form. A call that is not here and answers, or is here and does not, fails the test."""

# Each number is tried in a child of its own, because some end the caller, wait for ever or do not return twice. All arguments are -1, which no
# call does anything with, but for the calls that are allowed under a condition: they get arguments that meet it.
SWEEP = """
import signal, struct
PLAIN = [-1] * 6
MEETS = {16: [-1, 0x541B, -1], 44: [-1, -1, -1, -1, 0, 0], 53: [1, 1, -1, -1], 56: [17, 0, 0, 0, 0, 0], 135: [0xFFFFFFFF],
         302: [0, -1, -1, -1]}
def attempt(number):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(1)
        code = call(number, *MEETS.get(number, PLAIN))
        os.write(write_end, struct.pack("i", code))
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    os.set_blocking(read_end, False)
    try:
        raw = os.read(read_end, 4)
    except BlockingIOError:
        raw = b""
    os.close(read_end)
    return struct.unpack("i", raw)[0] if raw else -1
out = {number: attempt(number) for number in %s}
"""

EXEMPT = {335, 336}
"""``uretprobe`` and ``uprobe``: newer kernels ask no filter about them, because only the kernel's own trampoline may use them; anybody else is
killed by SIGILL or gets ENXIO."""

CLOSED = {errno.EPERM, errno.ENOSYS}


def answering(verdicts):
    """-1 is a call that ended its caller or did not return in time: it ran."""
    return {int(number) for number, code in verdicts.items() if code not in CLOSED}


def test_the_pinned_set_is_what_the_groups_say():
    assert {entry.partition(":")[2] for entry in ANSWERS.split()} == seccomp.allowed_names()


async def test_exactly_the_pinned_calls_answer(probe):
    seen = await probe(SWEEP % f"range({LAST + 1})")
    pinned = {int(entry.partition(":")[0]) for entry in ANSWERS.split()}
    newer = {number for number in pinned if seen[str(number)] == errno.ENOSYS}
    assert answering(seen) - EXEMPT == pinned - newer
    assert {seen[str(number)] for number in EXEMPT} <= {-1, errno.ENXIO, *CLOSED}
    assert len(newer) < 5, "this kernel is older than a few of the calls, not than half of them"


FOREIGN = f"""
out = []
for number in {X32}:
    pid = os.fork()
    if pid == 0:
        call(number, -1, -1, -1, -1, -1, -1)
        os._exit(0)
    out.append(os.waitpid(pid, 0)[1] & 0x7F)
"""


async def test_calls_of_the_x32_abi_end_their_caller(probe):
    assert await probe(FOREIGN) == [31] * len(X32)


def test_without_the_filter_far_more_answers(unconfined):
    harmless = sorted(set(range(335)) - {int(entry.partition(":")[0]) for entry in ANSWERS.split()} - RISKY)
    assert len(answering(unconfined(SWEEP % harmless))) > 90


RISKY = {153, 162, 169, 306}
"""Hanging up a terminal, syncing the host's disks and rebooting have no arguments that make them harmless."""
