// A stand-in for the SFCS client library, which cannot be had: the same C interface over a folder,
// for the tests. Made from what is known of the interface, and from nothing of the library itself.
//
//   STANDIN_ROOT   the folder that is served
//   STANDIN_LOG    a file that each call is written to by name
//   STANDIN_FAIL   a function's name: it fails
//   STANDIN_AFTER  how many calls of that function succeed before
//   STANDIN_SHORT  bytes that one read or write moves at most
//   STANDIN_STRICT a rename over a file is refused
//   STANDIN_LAX    the flags O_CREAT and O_EXCL are refused
//   STANDIN_COMES  a file of somebody else's comes there at the first write to another
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
  int kind;
  char* name;
  time_t mtime;
  int64_t size;
  short replication;
  int64_t block_size;
  char* owner;
  char* group;
  short permissions;
  time_t atime;
} FileInfo;

static _Thread_local char last_error[512];

static void complain(const char* words) { snprintf(last_error, sizeof last_error, "%s", words); }

// Writes the call down; true if it is to fail.
static int fails(const char* name) {
  const char* log = getenv("STANDIN_LOG");
  if (log != NULL) {
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    char line[64];
    int len = snprintf(line, sizeof line, "%s\n", name);
    if (write(fd, line, (size_t)len) != len) abort();
    close(fd);
  }
  const char* failing = getenv("STANDIN_FAIL");
  if (failing == NULL || strcmp(failing, name) != 0) return 0;
  static atomic_int calls;
  const char* after = getenv("STANDIN_AFTER");
  if (after != NULL && atomic_fetch_add(&calls, 1) < atoi(after)) return 0;
  const char* secret = getenv("SFCS_SECRET_KEY");
  snprintf(last_error, sizeof last_error, "%s was told to fail (key %s)", name, secret ? secret : "");
  errno = EIO;
  return 1;
}

static size_t at_most(size_t len) {
  const char* bound = getenv("STANDIN_SHORT");
  size_t most = bound == NULL ? len : (size_t)atol(bound);
  return len < most ? len : most;
}

static const char* rooted(const char* path, char* buffer, size_t size) {
  snprintf(buffer, size, "%s/%s", getenv("STANDIN_ROOT"), path);
  return buffer;
}

void* cfsNewBuilder(void) { return calloc(1, 64); }

void cfsBuilderSetNameNode(void* builder, const char* name) {
  snprintf(builder, 64, "%s", name);
}

void cfsBuilderSetUserName(void* builder, const char* name) {
  (void)builder;
  (void)name;
}

void* cfsBuilderConnect(void* builder, const void* none) {
  const char* conf = getenv("LIBCLOUDFS_CONF");
  FILE* file = conf == NULL ? NULL : fopen(conf, "r");
  if (fails("cfsBuilderConnect") || file == NULL || none != NULL || strcmp(builder, "default") != 0) {
    if (file == NULL) complain("LIBCLOUDFS_CONF names no file");
    if (file != NULL) fclose(file);
    return NULL;
  }
  char text[16384] = "";
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  if (strstr(text, "<name>cfs.filesystem.fs-mode</name><value>ACC</value>") == NULL ||
      strstr(text, "<name>dfs.default.uri</name><value>cfs://") == NULL) {
    complain("the settings are not whole");
    return NULL;
  }
  return strdup("connected");
}

void cfsFreeBuilder(void* builder) { free(builder); }
int cfsDisconnect(void* fs) { return fs == NULL; }
const char* cfsGetLastError(void) { return last_error; }

static int* opened(const char* path, int flags, mode_t mode) {
  char buffer[4096];
  int fd = open(rooted(path, buffer, sizeof buffer), flags | O_CLOEXEC, mode);
  if (fd < 0) {
    complain(strerror(errno));
    return NULL;
  }
  int* file = malloc(sizeof *file);
  *file = fd;
  return file;
}

void* cfsOpenFile(void* fs, const char* path, int flags, int buffer, short replicas, int64_t block) {
  (void)fs, (void)buffer, (void)replicas, (void)block;
  return fails("cfsOpenFile") ? NULL : opened(path, flags, 0);
}

void* cfsOpenFileAcc(void* fs, const char* path, int flags, mode_t mode, int parents, int appends) {
  (void)fs, (void)parents, (void)appends;
  if (fails("cfsOpenFileAcc")) return NULL;
  if (getenv("STANDIN_LAX") != NULL && (flags & (O_CREAT | O_EXCL))) {
    complain("flags that are not known");
    errno = EINVAL;
    return NULL;
  }
  return opened(path, (flags & ~O_ASYNC) | O_CREAT | O_TRUNC, mode);
}

int cfsCloseFile(void* fs, void* file) {
  (void)fs;
  close(*(int*)file);
  free(file);
  return fails("cfsCloseFile") ? -1 : 0;
}

int32_t cfsPread(void* fs, void* file, int64_t offset, void* buffer, int32_t len) {
  (void)fs;
  if (fails("cfsPread")) return -1;
  return (int32_t)pread(*(int*)file, buffer, at_most((size_t)len), offset);
}

// What another client does meanwhile.
static void come(void) {
  char path[4096];
  const char* name = getenv("STANDIN_COMES");
  if (name == NULL) return;
  int fd = open(rooted(name, path, sizeof path), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return;
  if (write(fd, "theirs", 6) != 6) abort();
  close(fd);
}

int64_t cfsWrite(void* fs, void* file, const void* bytes, uint64_t len) {
  (void)fs;
  come();
  return fails("cfsWrite") ? -1 : write(*(int*)file, bytes, at_most(len));
}

int cfsSync(void* fs, void* file) { return fs == NULL || file == NULL; }

int cfsHSync(void* fs, void* file) {
  (void)fs;
  return fails("cfsHSync") ? -1 : fsync(*(int*)file);
}

int cfsDelete(void* fs, const char* path, int recursive) {
  (void)fs, (void)recursive;
  char buffer[4096];
  return fails("cfsDelete") ? -1 : unlink(rooted(path, buffer, sizeof buffer));
}

int cfsRename(void* fs, const char* from, const char* to) {
  (void)fs;
  char one[4096], other[4096];
  rooted(to, other, sizeof other);
  if (fails("cfsRename")) return -1;
  if (getenv("STANDIN_STRICT") != NULL && access(other, F_OK) == 0) {
    complain("the target exists");
    errno = EEXIST;
    return -1;
  }
  return rename(rooted(from, one, sizeof one), other);
}

FileInfo* cfsGetPathInfo(void* fs, const char* path) {
  (void)fs;
  char buffer[4096];
  struct stat status;
  if (fails("cfsGetPathInfo")) return NULL;
  if (stat(rooted(path, buffer, sizeof buffer), &status) != 0) {
    complain("no such path");
    return NULL;
  }
  FileInfo* info = calloc(1, sizeof *info);
  info->kind = S_ISDIR(status.st_mode) ? 'D' : 'F';
  info->name = strdup(path);
  info->mtime = status.st_mtime;
  info->size = status.st_size;
  return info;
}

void cfsFreeFileInfo(FileInfo* info, int count) {
  (void)count;
  free(info->name);
  free(info);
}
