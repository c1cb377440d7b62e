// What the machine itself can do: the same bytes moved by nothing but system calls.
//
//     bare map FILE THREADS            private map, populated in parallel
//     bare copy FILE THREADS           read through the page cache into huge pages
//     bare direct FILE THREADS         read past the page cache into huge pages
//     bare write FILE THREADS BYTES    write through the page cache, then sync
//     bare write-direct FILE THREADS BYTES   write past the page cache, then sync
//
// A read ends when one byte of every page has been looked at, as in the other programs of the
// harness; a write when the file is durable. Prints one JSON object: seconds, those until a read's
// bytes were there, and the sum of the bytes looked at.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SEGMENT = 8 << 20, HUGE_PAGE = 2 << 20, MAX_THREADS = 256 };

static int file;
static char* memory;
static size_t length;       // bytes of the file
static atomic_size_t next;  // offset of the segment that is taken next
static double moved;        // seconds until the bytes of a read were there
static void (*move)(char* bytes, size_t len, off_t offset);

static void fail(const char* what) {
  fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void populate(char* bytes, size_t len, off_t offset) {
  (void)offset;
  if (madvise(bytes, len, MADV_POPULATE_READ) != 0) fail("populate");
}

static void read_in(char* bytes, size_t len, off_t offset) {
  while (len > 0) {
    ssize_t done = pread(file, bytes, len, offset);
    if (done < 0) fail("read");
    if (done == 0) return;  // the last block of a file read past the page cache
    bytes += done, offset += done, len -= (size_t)done;
  }
}

static void write_out(char* bytes, size_t len, off_t offset) {
  while (len > 0) {
    ssize_t done = pwrite(file, bytes, len, offset);
    if (done <= 0) fail("write");
    bytes += done, offset += done, len -= (size_t)done;
  }
}

static void* work(void* unused) {
  size_t room = (length + PAGE - 1) / PAGE * PAGE;
  for (size_t at; (at = atomic_fetch_add(&next, SEGMENT)) < room;)
    move(memory + at, room - at < SEGMENT ? room - at : SEGMENT, (off_t)at);
  return unused;
}

static void in_parallel(int threads) {
  pthread_t started[MAX_THREADS];
  for (int i = 0; i < threads; i++)
    if (pthread_create(&started[i], NULL, work, NULL) != 0) fail("start a thread");
  for (int i = 0; i < threads; i++) pthread_join(started[i], NULL);
}

static char* huge_pages(size_t len) {
  char* fresh = mmap(NULL, len + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) fail("map memory");
  fresh += HUGE_PAGE - (uintptr_t)fresh % HUGE_PAGE;
  madvise(fresh, len, MADV_HUGEPAGE);
  return fresh;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double load(const char* mode, int threads, uint64_t* sum) {
  double start = now();
  struct stat status;
  if (fstat(file, &status) != 0) fail("stat");
  length = (size_t)status.st_size;
  if (strcmp(mode, "map") == 0) {
    move = populate;
    memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (memory == MAP_FAILED) fail("map");
  } else {
    move = read_in;
    memory = huge_pages(length + PAGE);
  }
  in_parallel(threads);
  moved = now() - start;
  for (size_t at = 0; at < length; at += PAGE) *sum += (unsigned char)memory[at];
  return now() - start;
}

static double save(int threads) {
  move = write_out;
  memory = huge_pages(length);
  memset(memory, 7, length);
  double start = now();
  if (fallocate(file, 0, 0, (off_t)length) != 0) fail("reserve");
  in_parallel(threads);
  if (fsync(file) != 0) fail("sync");
  return now() - start;
}

int main(int count, char** arguments) {
  if (count < 4) {
    fprintf(stderr, "usage: bare map|copy|direct FILE THREADS, bare write|write-direct FILE THREADS BYTES\n");
    return 2;
  }
  const char* mode = arguments[1];
  int threads = atoi(arguments[3]);
  if (threads < 1 || threads > MAX_THREADS) return 2;
  int writes = strncmp(mode, "write", 5) == 0;
  int direct = strcmp(mode, "direct") == 0 || strcmp(mode, "write-direct") == 0;
  int flags = (writes ? O_RDWR | O_CREAT | O_TRUNC : O_RDONLY) | (direct ? O_DIRECT : 0);
  file = open(arguments[2], flags, 0666);
  if (file < 0) fail("open");
  uint64_t sum = 0;
  double seconds;
  if (writes) {
    length = count > 4 ? strtoull(arguments[4], NULL, 10) / PAGE * PAGE : 0;
    seconds = save(threads);
  } else {
    seconds = load(mode, threads, &sum);
  }
  printf("{\"seconds\": %.6f, \"call_seconds\": %.6f, \"sum\": %llu}\n", seconds,
         writes ? seconds : moved, (unsigned long long)sum);
  return 0;
}
