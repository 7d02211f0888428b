/* A library for LD_PRELOAD: lets the Nth call fail that changes a file below a directory, and shifts the wall clock.

   It does nothing until `fail_call` or `shift_clock` is called. Only calls that go through the dynamic linker pass here:
   those of CPython, SQLite, TensorStore and Rust do; what the C library does by itself (stdio's writes) does not. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

/* What a call does: an error is given only to calls that can have it. */
enum { WRITES = 1, TAKES_SPACE = 2, WAITS = 4, SYNCS = 8, NAMES = 16, CLOSES = 32, OPENS = 64, READS = 128, MAKES = 256 };

enum { SHORT = -1 }; /* instead of an error: half of the bytes are written */

static char directory[PATH_MAX];
static size_t length;
static atomic_long wanted, counted;
static int failure, lasting, kinds, report = -1;
static atomic_int armed;

/* Counts the calls of `kinds` below a directory from now on. The `nth` of them, from 1, fails with the error number
   `with`, or is short; every later one too if `always`. Each counted call is a line in the descriptor `log`. */
EXPORTED void fail_call(const char *below, long nth, int with, int always, int of_kinds, int log) {
    atomic_store(&armed, 0);
    snprintf(directory, sizeof directory, "%s", below);
    length = strlen(directory);
    atomic_store(&counted, 0);
    atomic_store(&wanted, nth);
    failure = with, lasting = always, kinds = of_kinds, report = log;
    atomic_store(&armed, 1);
}

EXPORTED long calls_counted(void) { return atomic_load(&counted); }

/* Returns whether this call is the one that fails. */
static int fails(const char *name, int kind, const char *path) {
    if (!(kind & kinds)) return 0;
    if (strncmp(path, directory, length) || (path[length] && path[length] != '/')) return 0;
    long number = atomic_fetch_add(&counted, 1) + 1, nth = atomic_load(&wanted);
    int failing = nth > 0 && (lasting ? number >= nth : number == nth);
    if (report >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%c %ld %s %s\n", failing ? '!' : '.', number, name, path);
        if (size > 0) syscall(SYS_write, report, line, (size_t)size < sizeof line ? (size_t)size : sizeof line - 1);
    }
    return failing;
}

static int fails_fd(const char *name, int kind, int fd) {
    if (!atomic_load(&armed) || fd == report) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return fails(name, kind, path);
}

static int fails_at(const char *name, int kind, int at, const char *given) {
    if (!atomic_load(&armed) || !given) return 0;
    if (given[0] == '/') return fails(name, kind, given);
    char link[64] = "/proc/self/cwd", path[2 * PATH_MAX];
    if (at != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size <= 0) return 0;
    snprintf(path + size, sizeof path - size, "/%s", given);
    return fails(name, kind, path);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define FAIL do { errno = failure; return -1; } while (0)

/* ── writing ── */

#define SHORTER(size) (failure == SHORT ? ((size) + 1) / 2 : 0)

#define DEFINE_WRITE(name, parameters, arguments, shorter) \
    EXPORTED ssize_t name parameters { \
        REAL(name); \
        if (size > (failure == SHORT ? 1 : 0) && fails_fd(#name, WRITES | TAKES_SPACE | WAITS, fd)) { \
            if (failure != SHORT) FAIL; \
            return real shorter; \
        } \
        return real arguments; \
    }

DEFINE_WRITE(write, (int fd, const void *from, size_t size), (fd, from, size), (fd, from, SHORTER(size)))
DEFINE_WRITE(pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at), (fd, from, SHORTER(size), at))
DEFINE_WRITE(pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at), (fd, from, SHORTER(size), at))

/* A short writev ends within its first part that is not empty. */
static ssize_t shorter_writev(int fd, const struct iovec *parts, int number, off_t at, int positioned) {
    for (int i = 0; i < number; i++) {
        if (!parts[i].iov_len) continue;
        size_t size = (parts[i].iov_len + 1) / 2;
        return positioned ? syscall(SYS_pwrite64, fd, parts[i].iov_base, size, at)
                          : syscall(SYS_write, fd, parts[i].iov_base, size);
    }
    return 0;
}

EXPORTED ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev);
    if (fails_fd("writev", WRITES | TAKES_SPACE | WAITS, fd)) {
        if (failure != SHORT) FAIL;
        return shorter_writev(fd, parts, number, 0, 0);
    }
    return real(fd, parts, number);
}

EXPORTED ssize_t pwritev(int fd, const struct iovec *parts, int number, off_t at) {
    REAL(pwritev);
    if (fails_fd("pwritev", WRITES | TAKES_SPACE | WAITS, fd)) {
        if (failure != SHORT) FAIL;
        return shorter_writev(fd, parts, number, at, 1);
    }
    return real(fd, parts, number, at);
}

EXPORTED ssize_t pwritev64(int fd, const struct iovec *parts, int number, off64_t at) {
    REAL(pwritev64);
    if (fails_fd("pwritev64", WRITES | TAKES_SPACE | WAITS, fd)) {
        if (failure != SHORT) FAIL;
        return shorter_writev(fd, parts, number, at, 1);
    }
    return real(fd, parts, number, at);
}

EXPORTED ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = (ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
    if (fails_fd("sendfile", WRITES | TAKES_SPACE | WAITS, to)) {
        if (failure != SHORT) FAIL;
        return real(to, from, at, SHORTER(size));
    }
    return real(to, from, at, size);
}

EXPORTED ssize_t copy_file_range(int from, off64_t *read_at, int to, off64_t *write_at, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (fails_fd("copy_file_range", WRITES | TAKES_SPACE | WAITS, to)) {
        if (failure != SHORT) FAIL;
        return real(from, read_at, to, write_at, SHORTER(size), flags);
    }
    return real(from, read_at, to, write_at, size, flags);
}

#define DEFINE_ON_FD(name, kind, parameters, arguments) \
    EXPORTED int name parameters { \
        REAL(name); \
        if (fails_fd(#name, kind, fd)) FAIL; \
        return real arguments; \
    }

DEFINE_ON_FD(fsync, SYNCS | WAITS, (int fd), (fd))
DEFINE_ON_FD(fdatasync, SYNCS | WAITS, (int fd), (fd))
DEFINE_ON_FD(ftruncate, NAMES | WAITS, (int fd, off_t size), (fd, size))
DEFINE_ON_FD(ftruncate64, NAMES | WAITS, (int fd, off64_t size), (fd, size))
DEFINE_ON_FD(fallocate, TAKES_SPACE | WAITS, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
DEFINE_ON_FD(fallocate64, TAKES_SPACE | WAITS, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
DEFINE_ON_FD(flock, WAITS, (int fd, int operation), (fd, operation))
DEFINE_ON_FD(fchmod, NAMES, (int fd, mode_t mode), (fd, mode))

/* These return the error and leave errno alone. */
EXPORTED int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(posix_fallocate);
    return fails_fd("posix_fallocate", TAKES_SPACE | WAITS, fd) ? failure : real(fd, at, size);
}

EXPORTED int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(posix_fallocate64);
    return fails_fd("posix_fallocate64", TAKES_SPACE | WAITS, fd) ? failure : real(fd, at, size);
}

/* A file that was written tells of a failed write at its closing, on network file systems; it is closed all the same. */
EXPORTED int close(int fd) {
    REAL(close);
    int flags = atomic_load(&armed) && (kinds & CLOSES) ? fcntl(fd, F_GETFL) : 0;
    int failing = flags > 0 && (flags & O_ACCMODE) != O_RDONLY && fails_fd("close", CLOSES, fd);
    int closed = real(fd);
    if (failing) FAIL;
    return closed;
}

/* ── reading ── */

#define DEFINE_READ(name, parameters, arguments, shorter) \
    EXPORTED ssize_t name parameters { \
        REAL(name); \
        if (size > (failure == SHORT ? 1 : 0) && fails_fd(#name, READS, fd)) { \
            if (failure != SHORT) FAIL; \
            return real shorter; \
        } \
        return real arguments; \
    }

DEFINE_READ(read, (int fd, void *to, size_t size), (fd, to, size), (fd, to, SHORTER(size)))
DEFINE_READ(pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at), (fd, to, SHORTER(size), at))
DEFINE_READ(pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at), (fd, to, SHORTER(size), at))

/* ── names ── */

static int opening(int flags) {
    return (flags & O_CREAT ? OPENS | TAKES_SPACE : (flags & O_ACCMODE) != O_RDONLY ? OPENS : 0) | WAITS;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

#define DEFINE_OPEN(name) \
    EXPORTED int name(const char *path, int flags, ...) { \
        MODE(flags) \
        REAL(name); \
        if (fails_at(#name, opening(flags), AT_FDCWD, path)) FAIL; \
        return real(path, flags, mode); \
    }

#define DEFINE_OPENAT(name) \
    EXPORTED int name(int at, const char *path, int flags, ...) { \
        MODE(flags) \
        REAL(name); \
        if (fails_at(#name, opening(flags), at, path)) FAIL; \
        return real(at, path, flags, mode); \
    }

DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

#define DEFINE_ON_PATH(name, kind, parameters, at, path, arguments) \
    EXPORTED int name parameters { \
        REAL(name); \
        if (fails_at(#name, kind, at, path)) FAIL; \
        return real arguments; \
    }

DEFINE_ON_PATH(creat, OPENS | TAKES_SPACE | WAITS, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
DEFINE_ON_PATH(mkdir, NAMES | TAKES_SPACE | MAKES, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
DEFINE_ON_PATH(mkdirat, NAMES | TAKES_SPACE | MAKES, (int at, const char *path, mode_t mode), at, path, (at, path, mode))
DEFINE_ON_PATH(rename, NAMES | TAKES_SPACE, (const char *from, const char *path), AT_FDCWD, path, (from, path))
DEFINE_ON_PATH(renameat, NAMES | TAKES_SPACE, (int from_at, const char *from, int at, const char *path), at, path, (from_at, from, at, path))
DEFINE_ON_PATH(renameat2, NAMES | TAKES_SPACE, (int from_at, const char *from, int at, const char *path, unsigned flags), at, path, (from_at, from, at, path, flags))
DEFINE_ON_PATH(link, NAMES | TAKES_SPACE, (const char *from, const char *path), AT_FDCWD, path, (from, path))
DEFINE_ON_PATH(linkat, NAMES | TAKES_SPACE, (int from_at, const char *from, int at, const char *path, int flags), at, path, (from_at, from, at, path, flags))
DEFINE_ON_PATH(symlink, NAMES | TAKES_SPACE, (const char *to, const char *path), AT_FDCWD, path, (to, path))
DEFINE_ON_PATH(unlink, NAMES, (const char *path), AT_FDCWD, path, (path))
DEFINE_ON_PATH(unlinkat, NAMES, (int at, const char *path, int flags), at, path, (at, path, flags))
DEFINE_ON_PATH(rmdir, NAMES, (const char *path), AT_FDCWD, path, (path))
DEFINE_ON_PATH(chmod, NAMES, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
DEFINE_ON_PATH(truncate, NAMES | WAITS, (const char *path, off_t size), AT_FDCWD, path, (path, size))
DEFINE_ON_PATH(truncate64, NAMES | WAITS, (const char *path, off64_t size), AT_FDCWD, path, (path, size))

/* ── the wall clock ── */

static atomic_long seconds_ahead;

/* Sets the wall clock this number of seconds ahead of the true time, or behind it. */
EXPORTED void shift_clock(long seconds) { atomic_store(&seconds_ahead, seconds); }

EXPORTED int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds_ahead;
    return result;
}

EXPORTED time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

EXPORTED int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *restrict, void *restrict);
    if (!real) real = (int (*)(struct timeval *restrict, void *restrict))dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    if (!result) now->tv_sec += seconds_ahead;
    return result;
}
