/* Downloads over HTTP/1.1 at so little cost that the server stays the bottleneck: one thread, epoll,
 * keep-alive, and bodies thrown away inside the kernel (recv with MSG_TRUNC copies nothing).
 *
 *   download [options] 127.0.0.1:PORT PATH...
 *     -c N     connections                              -f FILE  paths to ask for in turn, one a line
 *     -n N     requests in all (default: one each)      -d S     or: as many as fit in S seconds
 *     -H LINE  request header, may be repeated          -X HEAD  ask for heads only
 *     -s N     the first N connections read slowly,     -r N     each of them N bytes/s
 *     -T S     give up after S seconds (default 120)
 *
 * Prints one line of JSON. Times count from the request to the first byte of the body (of the head for
 * HEAD) and to the last. Slow connections are left out of the times, and the run is over when the
 * others are done. An answer must carry Content-Length: anything else counts as an error.
 * Loopback only, so that it can never be pointed at somebody's registry.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  HEAD_MAX = 16 * 1024,
  READ_MAX = 1 << 20,
  READS_PER_TURN = 4, /* then the other connections get theirs */
  STATUS_MAX = 600,
  ERRORS_MAX = 1000,
  SLOW_RECEIVE_BUFFER = 64 * 1024, /* or the kernel would read on where the client does not */
};
static const double SLOW_STEP_S = 0.02;

typedef enum { CLOSED, CONNECTING, READING_HEAD, READING_BODY } State;

typedef struct {
  int fd;
  State state;
  bool slow, closes;
  char head[HEAD_MAX];
  size_t head_length;
  int status;
  int64_t left;
  double asked_at, first_byte_at;
  double resume_at; /* a slow reader's next turn; 0: not waiting */
} Connection;

typedef struct {
  double *values;
  size_t length, capacity;
} Samples;

static struct {
  int connections, slow_connections;
  long requests; /* -1: by time */
  double seconds, limit_seconds, slow_bytes_per_second;
  bool head_only;
  char headers[8192];
  const char *host;
  char **paths;
  size_t path_count;
  struct sockaddr_in address;
} options = {.connections = 1, .requests = -1, .limit_seconds = 120};

static int poller;
static Connection *connections;
static double started_at;
static long started, finished, errors, statuses[STATUS_MAX];
static int64_t bytes;
static Samples first_byte_times, total_times;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void fail(const char *message) {
  fprintf(stderr, "download: %s\n", message);
  exit(2);
}

static bool more_to_ask(void) {
  if (errors > ERRORS_MAX) return false;
  if (options.requests >= 0) return started < options.requests;
  return now() < started_at + options.seconds;
}

static void watch(Connection *connection, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = connection};
  epoll_ctl(poller, operation, connection->fd, &event);
}

static void open_connection(Connection *connection) {
  connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (connection->fd < 0) fail("no socket: raise the limit on open files");
  int on = 1, small = SLOW_RECEIVE_BUFFER;
  setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connection->slow) setsockopt(connection->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  (void)connect(connection->fd, (struct sockaddr *)&options.address, sizeof options.address);
  connection->state = CONNECTING;
  watch(connection, EPOLL_CTL_ADD, EPOLLOUT);
}

static void close_connection(Connection *connection) {
  close(connection->fd);
  connection->state = CLOSED;
  connection->resume_at = 0;
}

static void ask(Connection *connection) {
  char request[12 * 1024];
  int length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n",
                        options.head_only ? "HEAD" : "GET",
                        options.paths[(size_t)started % options.path_count], options.host,
                        options.headers);
  started++;
  connection->asked_at = now();
  connection->first_byte_at = 0;
  connection->head_length = 0;
  connection->state = READING_HEAD;
  /* Requests are far smaller than an empty socket buffer: a short write means a dead connection. */
  if (send(connection->fd, request, (size_t)length, MSG_NOSIGNAL) != length) errors++;
  watch(connection, EPOLL_CTL_MOD, EPOLLIN);
}

static void ask_again_or_close(Connection *connection, bool reusable) {
  bool more = more_to_ask();
  if (more && reusable) {
    ask(connection);
    return;
  }
  close_connection(connection);
  if (more) open_connection(connection);
}

static void give_up(Connection *connection) {
  errors++;
  ask_again_or_close(connection, false);
}

static void note(Samples *samples, double value) {
  if (samples->length == samples->capacity) {
    samples->capacity = samples->capacity ? samples->capacity * 2 : 4096;
    samples->values = realloc(samples->values, samples->capacity * sizeof *samples->values);
    if (!samples->values) fail("out of memory");
  }
  samples->values[samples->length++] = value;
}

static void finish(Connection *connection) {
  finished++;
  statuses[connection->status]++;
  if (!connection->slow) {
    note(&first_byte_times, connection->first_byte_at - connection->asked_at);
    note(&total_times, now() - connection->asked_at);
  }
  ask_again_or_close(connection, !connection->closes);
}

/* Returns false when there is nothing more to read for now. */
static bool read_head(Connection *connection) {
  size_t room = sizeof connection->head - 1 - connection->head_length;
  ssize_t count = recv(connection->fd, connection->head + connection->head_length, room, 0);
  if (count < 0 && errno == EAGAIN) return false;
  if (count <= 0) {
    give_up(connection);
    return false;
  }
  connection->head_length += (size_t)count;
  connection->head[connection->head_length] = '\0';
  char *end = strstr(connection->head, "\r\n\r\n");
  if (!end) {
    if (connection->head_length < sizeof connection->head - 1) return true;
    give_up(connection);
    return false;
  }
  int64_t body_bytes = (int64_t)(connection->head_length - (size_t)(end + 4 - connection->head));
  *end = '\0';
  connection->status = atoi(connection->head + strlen("HTTP/1.1 "));
  connection->closes = strcasestr(connection->head, "\nconnection: close") != NULL;
  const char *length = strcasestr(connection->head, "\ncontent-length:");
  if (connection->status < 100 || connection->status >= STATUS_MAX || !length) {
    give_up(connection);
    return false;
  }
  connection->left = atoll(length + strlen("\ncontent-length:")) - body_bytes;
  if (body_bytes > 0 || connection->left <= 0 || options.head_only) {
    connection->first_byte_at = now();
  }
  bytes += body_bytes;
  if (connection->left > 0 && !options.head_only) {
    connection->state = READING_BODY;
    return true;
  }
  finish(connection);
  return false;
}

static bool read_body(Connection *connection) {
  size_t want = READ_MAX;
  if (connection->slow) want = (size_t)(options.slow_bytes_per_second * SLOW_STEP_S);
  if ((int64_t)want > connection->left) want = (size_t)connection->left;
  ssize_t count = recv(connection->fd, NULL, want, MSG_TRUNC);
  if (count < 0 && errno == EAGAIN) return false;
  if (count <= 0) {
    give_up(connection);
    return false;
  }
  if (connection->first_byte_at == 0) connection->first_byte_at = now();
  bytes += count;
  connection->left -= count;
  if (connection->left == 0) {
    finish(connection);
    return false;
  }
  if (!connection->slow) return true;
  connection->resume_at = now() + SLOW_STEP_S;
  watch(connection, EPOLL_CTL_MOD, 0);
  return false;
}

static void on_event(Connection *connection) {
  if (connection->state == CONNECTING) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
      /* Nobody listens: trying again would spin. */
      errors++;
      close_connection(connection);
    } else if (more_to_ask()) {
      ask(connection);
    } else {
      close_connection(connection);
    }
    return;
  }
  for (int turn = 0; turn < READS_PER_TURN; turn++) {
    bool go_on = connection->state == READING_HEAD   ? read_head(connection)
                 : connection->state == READING_BODY ? read_body(connection)
                                                     : false;
    if (!go_on) return;
  }
}

static void wake_slow_readers(void) {
  double time = now();
  for (int i = 0; i < options.slow_connections; i++) {
    Connection *connection = &connections[i];
    if (connection->resume_at == 0 || connection->resume_at > time) continue;
    connection->resume_at = 0;
    watch(connection, EPOLL_CTL_MOD, EPOLLIN);
  }
}

static bool busy(void) {
  bool all_slow = options.slow_connections >= options.connections;
  for (int i = all_slow ? 0 : options.slow_connections; i < options.connections; i++) {
    if (connections[i].state != CLOSED) return true;
  }
  return false;
}

/* Returns false when the limit ended the run. */
static bool run(void) {
  started_at = now();
  for (int i = 0; i < options.connections; i++) {
    connections[i].slow = i < options.slow_connections;
    open_connection(&connections[i]);
  }
  struct epoll_event events[256];
  while (busy()) {
    double elapsed = now() - started_at;
    if (options.requests < 0 && elapsed > options.seconds) return true;
    if (elapsed > options.limit_seconds) return false;
    int timeout_ms = options.slow_connections ? 5 : 100;
    int count = epoll_wait(poller, events, 256, timeout_ms);
    for (int i = 0; i < count; i++) on_event(events[i].data.ptr);
    if (options.slow_connections) wake_slow_readers();
  }
  return true;
}

static int ascending(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static void print_times(const char *name, Samples *samples) {
  static const struct {
    const char *name;
    double share;
  } points[] = {{"p50", 0.5}, {"p99", 0.99}, {"max", 1}};
  if (samples->length) {
    qsort(samples->values, samples->length, sizeof *samples->values, ascending);
  }
  printf(",\"%s\":{", name);
  for (int i = 0; i < 3; i++) {
    size_t index = samples->length ? (size_t)((double)(samples->length - 1) * points[i].share) : 0;
    double value = samples->length ? samples->values[index] * 1000 : 0;
    printf("%s\"%s\":%.3f", i ? "," : "", points[i].name, value);
  }
  printf("}");
}

static void print_results(double seconds, bool in_time) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  printf("{\"seconds\":%.4f,\"requests\":%ld,\"bytes\":%lld,\"errors\":%ld,\"timedOut\":%s", seconds,
         finished, (long long)bytes, errors, in_time ? "false" : "true");
  printf(",\"cpuSeconds\":%.3f,\"statuses\":{", cpu_seconds);
  bool first = true;
  for (int status = 0; status < STATUS_MAX; status++) {
    if (!statuses[status]) continue;
    printf("%s\"%d\":%ld", first ? "" : ",", status, statuses[status]);
    first = false;
  }
  printf("}");
  print_times("firstByteMs", &first_byte_times);
  print_times("totalMs", &total_times);
  printf("}\n");
}

static void add_path(char *path) {
  options.paths = realloc(options.paths, (options.path_count + 1) * sizeof *options.paths);
  if (!options.paths) fail("out of memory");
  options.paths[options.path_count++] = path;
}

static void add_paths_of(const char *name) {
  FILE *file = fopen(name, "r");
  if (!file) fail("the file with the paths cannot be read");
  char line[2048];
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\r\n")] = '\0';
    if (*line) add_path(strdup(line));
  }
  fclose(file);
}

static void add_header(const char *line) {
  size_t used = strlen(options.headers), room = sizeof options.headers - used;
  if ((size_t)snprintf(options.headers + used, room, "%s\r\n", line) >= room) fail("long headers");
}

static void parse(int count, char **values) {
  int letter;
  while ((letter = getopt(count, values, "c:n:d:f:H:X:s:r:T:")) != -1) {
    switch (letter) {
      case 'c': options.connections = atoi(optarg); break;
      case 'n': options.requests = atol(optarg); break;
      case 'd': options.seconds = atof(optarg); break;
      case 'f': add_paths_of(optarg); break;
      case 'H': add_header(optarg); break;
      case 'X': options.head_only = strcmp(optarg, "HEAD") == 0; break;
      case 's': options.slow_connections = atoi(optarg); break;
      case 'r': options.slow_bytes_per_second = atof(optarg); break;
      case 'T': options.limit_seconds = atof(optarg); break;
      default: fail("unknown option");
    }
  }
  if (optind >= count) fail("where to?");
  options.host = values[optind];
  char address[32];
  int port;
  if (sscanf(options.host, "%31[0-9.]:%d", address, &port) != 2) fail("expected 127.0.0.1:PORT");
  options.address.sin_family = AF_INET;
  options.address.sin_port = htons((uint16_t)port);
  if (inet_pton(AF_INET, address, &options.address.sin_addr) != 1) fail("expected 127.0.0.1:PORT");
  if (ntohl(options.address.sin_addr.s_addr) >> 24 != 127) fail("loopback only");
  for (int i = optind + 1; i < count; i++) add_path(values[i]);
  if (!options.path_count) fail("no paths");
  if (options.connections < 1) fail("no connections");
  if (options.slow_connections > 0 && options.slow_bytes_per_second <= 0) fail("-s needs -r");
  if (options.requests < 0 && options.seconds <= 0) options.requests = options.connections;
}

int main(int count, char **values) {
  parse(count, values);
  poller = epoll_create1(0);
  connections = calloc((size_t)options.connections, sizeof *connections);
  if (poller < 0 || !connections) fail("out of memory");
  bool in_time = run();
  print_results(now() - started_at, in_time);
  return 0;
}
