/* Stands before libc in the agents of a throwaway server, strikes one at an exact write, sets its clock, and notes what it brings
   to the disk: see faults.rs. The file `aim` in the folder $FAULTS says where, and is read at every write that counts;
   $FAULTS_STATE is the state folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* Whether the file is one of the state folder's, or about to be nginx's, and whether it is a journal. */
static int counts(int fd, int *journal) {
    char link[64], path[4096], state[4096], nginx[4096];
    const char *folder = getenv("FAULTS"), *kept = getenv("FAULTS_STATE");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (folder == NULL || kept == NULL || length < 0)
        return 0;
    path[length] = 0;
    snprintf(state, sizeof state, "%s/", kept);
    /* What takes the place of nginx's file is written beside it. */
    snprintf(nginx, sizeof nginx, "%s/.model-swap-", folder);
    *journal = ends_with(path, "/journal.ndjson");
    if (strncmp(path, nginx, strlen(nginx)) == 0)
        return 1;
    /* The binary is brought before there is an agent, and what is said in logs is no deed. */
    return strncmp(path, state, strlen(state)) == 0 && !ends_with(path, "/events.ndjson")
        && !ends_with(path, ".log") && strstr(path, "/bin/") == NULL;
}

static unsigned aimed(const char *what) {
    char path[4096], word[16];
    unsigned number = 0;
    snprintf(path, sizeof path, "%s/aim", getenv("FAULTS"));
    FILE *aim = fopen(path, "r");
    if (aim == NULL)
        return 0;
    int read = fscanf(aim, "%15s %u", word, &number);
    fclose(aim);
    return read == 2 && strcmp(word, what) == 0 ? number : 0;
}

/* An agent that nobody has heard of yet: it is stopped before it does anything. */
__attribute__((constructor)) static void begin(void) {
    const char run[] = "\0agent\0run";
    char line[4096];
    if (getenv("FAULTS") == NULL || aimed("freeze-start") == 0)
        return;
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, line, sizeof line);
    close(fd);
    if (length > 0 && memmem(line, length, run, sizeof run) != NULL)
        raise(SIGSTOP);
}

/* How far the clock is off, in seconds: the text of the file `clock`. */
static long clock_off(void) {
    char path[4096], text[32];
    const char *folder = getenv("FAULTS");
    if (folder == NULL)
        return 0;
    snprintf(path, sizeof path, "%s/clock", folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length < 0 ? 0 : length] = 0;
    return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t which, struct timespec *time) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(which, time);
    if (answer == 0 && which == CLOCK_REALTIME) {
        int before = errno;
        time->tv_sec += clock_off();
        errno = before;
    }
    return answer;
}

int inotify_init1(int flags) {
    int (*real)(int) = dlsym(RTLD_NEXT, "inotify_init1");
    if (aimed("unwatched") == 0)
        return real(flags);
    errno = EMFILE;
    return -1;
}

/* A line in the file `disk`, where there is one: what was done to which file. */
static void note(const char *what, const char *path) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    char disk[4096], line[4200];
    int before = errno;
    const char *folder = getenv("FAULTS");
    if (folder == NULL)
        return;
    snprintf(disk, sizeof disk, "%s/disk", folder);
    int fd = open(disk, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd >= 0) {
        int length = snprintf(line, sizeof line, "%d %s %s\n", getpid(), what, path);
        if (real(fd, line, length) != length)
            raise(SIGABRT);
        close(fd);
    }
    errno = before;
}

static void note_fd(const char *what, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return;
    path[length] = 0;
    note(what, path);
}

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
    int fd = real(path, flags, mode);
    if (fd >= 0 && is_new)
        note("made", path);
    return fd;
}

int mkdir(const char *path, mode_t mode) {
    int (*real)(const char *, mode_t) = dlsym(RTLD_NEXT, "mkdir");
    int made = real(path, mode);
    if (made == 0)
        note("made", path);
    return made;
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    int synced = real(fd);
    if (synced == 0)
        note_fd("synced", fd);
    return synced;
}

/* Whether bytes are an event of this swap's log that is told at its own time: samples come when they come. */
static int is_event(int fd, const void *bytes, size_t count) {
    char link[64], path[4096];
    const char sampled[] = "\"event\":\"sampled\"";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return ends_with(path, "/events.ndjson") && memmem(bytes, count, sampled, strlen(sampled)) == NULL;
}

static unsigned records, writes;

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    int journal = 0;
    if (!counts(fd, &journal)) {
        ssize_t written = real(fd, bytes, count);
        if (written > 0 && is_event(fd, bytes, count) && aimed("freeze-event") != 0)
            raise(SIGSTOP);
        return written;
    }
    unsigned full = aimed("full");
    if (full != 0 && ++writes >= full) {
        if (writes == full && real(fd, bytes, count / 2) < 0)
            return -1;
        errno = ENOSPC;
        return -1;
    }
    records += journal;
    int kills = journal && records == aimed("within"), freezes = journal && records == aimed("freeze-within");
    if ((kills || freezes) && real(fd, bytes, count / 2) >= 0)
        raise(kills ? SIGKILL : SIGSTOP);
    note_fd("wrote", fd);
    return real(fd, bytes, count);
}

int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    int journal = 0, synced = real(fd);
    if (synced == 0)
        note_fd("synced", fd);
    if (counts(fd, &journal) && journal) {
        if (records == aimed("after"))
            raise(SIGKILL);
        if (records == aimed("freeze") || aimed("freeze-each") != 0)
            raise(SIGSTOP);
    }
    return synced;
}
