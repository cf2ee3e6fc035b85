// A layer between a program and the disk, preloaded, that makes what the program asks fail as it is told meanwhile.
//
// ALIBI_FAULTS_BELOW names the directory below which things fail; ALIBI_FAULTS_CONTROL a file of three numbers of 32 bits:
// the errno (0: nothing fails), which kinds of calls, and that one in how many does. A write that fails has first written
// half, if kind 64 is among them. From byte 16 on, the file says how many calls have failed, as a number of 64 bits.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, OPEN = 4, RENAME = 8, UNLINK = 16, TRUNCATE = 32, SHORT = 64 };

static char below[PATH_MAX];
static int control = -1;
static uint64_t asked, failed;

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("ALIBI_FAULTS_BELOW"), *file = getenv("ALIBI_FAULTS_CONTROL");
    if (directory && file && strlen(directory) < sizeof below) {
        strcpy(below, directory);
        control = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    }
}

static int is_below(const char *path) {
    return path && *below && !strncmp(path, below, strlen(below));
}

static int fd_is_below(int fd) {
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    return is_below(path);
}

// Whether this call fails, and with half of it done before if `half` becomes 1.
static int fails(uint32_t kind, int *half) {
    uint32_t told[3] = {0};
    if (control < 0 || syscall(SYS_pread64, control, told, sizeof told, 0) != sizeof told) return 0;
    if (!told[0] || !(told[1] & kind)) return 0;
    // The same calls in the same order fail in every run.
    uint64_t nth = __atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED) * 0x9e3779b97f4a7c15u;
    if (told[2] > 1 && (nth >> 32) % told[2]) return 0;
    uint64_t count = __atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED);
    syscall(SYS_pwrite64, control, &count, sizeof count, 16);
    if (half) *half = (told[1] & SHORT) != 0;
    errno = (int)told[0];
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    int half = 0;
    if (fd_is_below(fd) && fails(WRITE, &half)) return half && count > 1 ? real(fd, bytes, count / 2) : -1;
    return real(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    int half = 0;
    if (fd_is_below(fd) && fails(WRITE, &half)) return half && count > 1 ? real(fd, bytes, count / 2, at) : -1;
    return real(fd, bytes, count, at);
}

int fsync(int fd) {
    REAL(fsync);
    return fd_is_below(fd) && fails(SYNC, NULL) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return fd_is_below(fd) && fails(SYNC, NULL) ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    return fd_is_below(fd) && fails(TRUNCATE, NULL) ? -1 : real(fd, length);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return is_below(to) && fails(RENAME, NULL) ? -1 : real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    return is_below(path) && fails(UNLINK, NULL) ? -1 : real(path);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = va_arg(arguments, mode_t);
    va_end(arguments);
    int is_to_write = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
    return is_to_write && is_below(path) && fails(OPEN, NULL) ? -1 : real(path, flags, mode);
}
