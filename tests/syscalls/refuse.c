// Refuses system calls about files, or writes them down, for the tests: put before the C library by
// LD_PRELOAD.
//
//   REFUSE      calls and the errno that each fails with, as "renameat=22 linkat=1"; "dirsync" is fsync
//               of a directory
//   REFUSE_LOG  a file that each call is written to: what was done, and the name of the file
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(const char* call, const char* name) {
  const char* log = getenv("REFUSE_LOG");
  if (log == NULL || *log == 0) return;
  int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  char line[8192];
  int len = snprintf(line, sizeof line, "%s %s\n", call, name);
  if (write(fd, line, (size_t)len) != len) abort();
  close(fd);
}

// The errno that `call` is to fail with; 0 lets it pass.
static int refused(const char* call) {
  const char* list = getenv("REFUSE");
  size_t len = strlen(call);
  for (const char* at = list; at != NULL && (at = strstr(at, call)) != NULL; at += len) {
    if ((at == list || at[-1] == ' ') && at[len] == '=') return errno = atoi(at + len + 1);
  }
  return 0;
}

static void* next(const char* name) { return dlsym(RTLD_NEXT, name); }

int fsync(int fd) {
  char link[64], name[4096] = "";
  struct stat status;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (readlink(link, name, sizeof name - 1) < 0) return -1;
  const char* last = strrchr(name, '/');
  int is_directory = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
  note(is_directory ? "dirsync" : "fsync", last == NULL ? name : last + 1);
  if (refused(is_directory ? "dirsync" : "fsync")) return -1;
  int (*real)(int) = (int (*)(int))next("fsync");
  return real(fd);
}

int renameat(int from_dir, const char* from, int to_dir, const char* to) {
  note("renameat", to);
  if (refused("renameat")) return -1;
  int (*real)(int, const char*, int, const char*) =
      (int (*)(int, const char*, int, const char*))next("renameat");
  return real(from_dir, from, to_dir, to);
}

int linkat(int from_dir, const char* from, int to_dir, const char* to, int flags) {
  note("linkat", to);
  if (refused("linkat")) return -1;
  int (*real)(int, const char*, int, const char*, int) =
      (int (*)(int, const char*, int, const char*, int))next("linkat");
  return real(from_dir, from, to_dir, to, flags);
}

long syscall(long number, ...) {
  long word[6];
  va_list words;
  va_start(words, number);
  for (int i = 0; i < 6; ++i) word[i] = va_arg(words, long);
  va_end(words);
  if (number == SYS_renameat2) {
    note("renameat2", (const char*)word[3]);
    if (refused("renameat2")) return -1;
  }
  long (*real)(long, ...) = (long (*)(long, ...))next("syscall");
  return real(number, word[0], word[1], word[2], word[3], word[4], word[5]);
}
