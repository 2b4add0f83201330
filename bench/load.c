/* SPDX-License-Identifier: GPL-3.0-or-later
 * An LMTP load that behaves like Postfix's lmtp client: MAIL, RCPT... and DATA in one write, the message with its final
 * dot in the next, QUIT behind the dot when the connection carries no further message. Every reply is checked.
 *
 *   load [options] ADDRESS
 *     -s N  sessions at once (20)            -m N  messages; 0: until SIGTERM or SIGINT (1000)
 *     -l N  octets of a message (4096)       -r N  recipients of a message (1)
 *     -k N  messages per connection; 0: all  -u N  users, u0000000@bench.test and on, who take turns (1000)
 *     -i N  idle connections besides         -t N  ms between two octets of NOOPs on each idle one; 0: silence
 *     -w    when the idle ones are greeted, say so, and begin with the next line on standard input
 *     -p N  seconds without a reply after which all is given up (60)
 *
 * One line of JSON at the end. A wrong reply, a lost or refused connection is an error, costs its message, and the
 * session goes on with the next one on a new connection. One thread, one epoll loop.
 */
#include "address.h"
#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>

enum { REPLY_LINE = 4096, BATCH = 50, MANY_FRUITLESS = 100 };
enum state { GREETING, LHLO, ENVELOPE, FINAL, QUITTING, IDLE };

struct session {
    int fd, is_idle, pipelining, polled_for_output, last;
    enum state state;
    int replies; /* of this state so far */
    long carried;
    double began;
    size_t in_length;
    const char *out;
    size_t out_left;
    char *envelope;
    char in[REPLY_LINE];
};

static struct options {
    long sessions, messages, octets, recipients, per_connection, users, idle, trickle, patience;
    int wait;
} option = {.sessions = 20, .messages = 1000, .octets = 4096, .recipients = 1, .users = 1000, .patience = 60};

static struct address target;
static volatile sig_atomic_t stopping;
static int epoll;
static char *message; /* with the final dot, and QUIT behind it */
static size_t message_length;
static const char QUIT[] = "QUIT\r\n", HELLO[] = "LHLO load.bench.test\r\n", NOOP[] = "NOOP\r\n";

static long claimed, delivered, errors, active, idle_open, idle_opening, next_user;
static long fruitless; /* connections in a row that did not come to a message */
static double *latencies;
static size_t room;
static char first_error[300];

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static void note(const char *what, const char *about)
{
    errors++;
    if (!first_error[0])
        snprintf(first_error, sizeof first_error, "%s: %.200s", what, about);
}

static int has_more(void)
{
    return !stopping && (!option.messages || claimed < option.messages);
}

static void poll_for(struct session *s, int output)
{
    struct epoll_event event = {.events = EPOLLIN | (output ? EPOLLOUT : 0), .data.ptr = s};
    if (output != s->polled_for_output)
        epoll_ctl(epoll, EPOLL_CTL_MOD, s->fd, &event);
    s->polled_for_output = output;
}

static void hang_up(struct session *s)
{
    close(s->fd);
    s->fd = -1;
}

/* A new connection, or the end of this session when there is nothing left to do. */
static void open_session(struct session *s)
{
    s->fd = -1;
    while (s->is_idle || has_more()) {
        if ((s->fd = connect_to(&target)) >= 0)
            break;
        note("connect", strerror(errno));
        if (++fruitless >= MANY_FRUITLESS || s->is_idle)
            stopping = 1;
        usleep(10000);
        if (s->is_idle)
            break;
    }
    if (s->fd < 0) {
        active -= !s->is_idle;
        return;
    }
    s->state = GREETING;
    s->replies = s->last = s->polled_for_output = s->pipelining = 0;
    s->in_length = s->out_left = s->carried = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &event);
}

/* The connection is of no use any more; what it was doing is lost. */
static void fail(struct session *s, const char *what, const char *about)
{
    note(what, about);
    if (s->state <= LHLO && ++fruitless >= MANY_FRUITLESS)
        stopping = 1;
    hang_up(s);
    if (s->is_idle)
        idle_open -= s->state == IDLE;
    else
        open_session(s);
}

static void flush(struct session *s)
{
    while (s->out_left) {
        ssize_t sent = send(s->fd, s->out, s->out_left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno != EAGAIN)
            return; /* the reading side says what is wrong */
        if (sent < 0)
            break;
        s->out += sent;
        s->out_left -= sent;
    }
    poll_for(s, s->out_left != 0);
}

static void say(struct session *s, enum state next, const char *octets, size_t length)
{
    s->state = next;
    s->replies = 0;
    s->out = octets;
    s->out_left = length;
    flush(s);
}

static void begin_message(struct session *s)
{
    if (!has_more()) {
        say(s, QUITTING, QUIT, sizeof QUIT - 1);
        return;
    }
    fruitless = 0;
    claimed++;
    s->last = ++s->carried == option.per_connection || (option.messages && claimed == option.messages);
    char *end = s->envelope + sprintf(s->envelope, "MAIL FROM:<sender@bench.test>\r\n");
    for (long i = 0; i < option.recipients; i++, next_user++)
        end += sprintf(end, "RCPT TO:<u%07ld@bench.test>\r\n", next_user % option.users);
    end += sprintf(end, "DATA\r\n");
    s->began = now();
    say(s, ENVELOPE, s->envelope, end - s->envelope);
}

static void end_message(struct session *s)
{
    if ((size_t)delivered == room)
        latencies = realloc(latencies, (room = room ? 2 * room : 65536) * sizeof *latencies);
    latencies[delivered++] = now() - s->began;
    if (s->last) {
        s->state = QUITTING;
        s->replies = 0;
    } else {
        begin_message(s);
    }
}

static int expected(const struct session *s)
{
    switch (s->state) {
    case GREETING: return 220;
    case ENVELOPE: return s->replies == option.recipients + 1 ? 354 : 250;
    case QUITTING: return 221;
    default: return 250;
    }
}

static const char *const NAMES[] = {"greeting", "LHLO", "envelope", "final reply", "QUIT", "NOOP"};

/* Takes one whole reply; 0 when the connection is gone. */
static int take_reply(struct session *s, int code, const char *line, int more)
{
    if (code != expected(s)) {
        fail(s, NAMES[s->state], line);
        return 0;
    }
    if (s->state == FINAL && s->out_left) {
        fail(s, "a reply before the final dot was sent", line);
        return 0;
    }
    s->replies++;
    switch (s->state) {
    case GREETING:
        say(s, LHLO, HELLO, sizeof HELLO - 1);
        break;
    case LHLO:
        if (!s->pipelining) {
            fail(s, "LHLO", "PIPELINING is not offered");
            stopping = 1;
            return 0;
        }
        if (s->is_idle) {
            s->state = IDLE;
            idle_open++;
            idle_opening--;
        } else {
            begin_message(s);
        }
        break;
    case ENVELOPE:
        if (s->replies == option.recipients + 2)
            say(s, FINAL, message, message_length - (s->last ? 0 : sizeof QUIT - 1));
        break;
    case FINAL:
        if (s->replies < option.recipients)
            break;
        if (more && !s->last) {
            fail(s, "more replies than commands", line);
            return 0;
        }
        end_message(s);
        break;
    case QUITTING:
        hang_up(s);
        open_session(s);
        return 0;
    case IDLE:
        break;
    }
    return 1;
}

/* Takes the lines that are there; what is left of the last one stays. */
static void take_input(struct session *s)
{
    char *at = s->in, *end = s->in + s->in_length, *newline;
    while ((newline = memchr(at, '\n', end - at))) {
        char *line = at;
        at = newline + 1;
        if (newline == line || newline[-1] != '\r') {
            fail(s, NAMES[s->state], "a line that does not end in CRLF");
            return;
        }
        newline[-1] = 0;
        if (s->state == LHLO && strlen(line) > 4 && !strcmp(line + 4, "PIPELINING"))
            s->pipelining = 1;
        if (strlen(line) > 3 && line[3] == '-')
            continue;
        if (!take_reply(s, atoi(line), line, at < end))
            return;
    }
    s->in_length = end - at;
    memmove(s->in, at, s->in_length);
    if (s->in_length == sizeof s->in)
        fail(s, NAMES[s->state], "a line without an end");
}

static void receive(struct session *s)
{
    ssize_t length = recv(s->fd, s->in + s->in_length, sizeof s->in - s->in_length, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (length <= 0) {
        fail(s, NAMES[s->state], length ? strerror(errno) : "the connection was closed");
        return;
    }
    s->in_length += length;
    take_input(s);
}

/* Lines of 74 octets, every 50th begins with a (stuffed) dot: what a mail with attachments looks like to a proxy. */
static void write_message(void)
{
    message = malloc(option.octets + 512);
    char *at = message + sprintf(message, "From: <sender@bench.test>\r\nTo: <user@bench.test>\r\n"
                                          "Subject: bench\r\nMessage-ID: <1@bench.test>\r\n\r\n");
    for (long line = 0, left; (left = option.octets - (at - message)) > 2; line++) {
        long width = left > 76 ? 72 : left - 2; /* so that no line without content is left at the end */
        for (long i = 0; i < width; i++)
            *at++ = line % 50 == 17 && i < 2 ? '.' : 'A' + (line + i) % 26;
        *at++ = '\r';
        *at++ = '\n';
    }
    at += sprintf(at, ".\r\n%s", QUIT);
    message_length = at - message;
}

static int connect_idle(struct session *idle)
{
    static long opened;
    while (opened < option.idle && idle_opening < BATCH && !stopping) {
        idle_opening++;
        idle[opened].is_idle = 1;
        open_session(&idle[opened++]);
    }
    return idle_open == option.idle || stopping;
}

/* The octets that are due since the last call, one for each idle connection in turn. */
static void trickle(const struct session *idle, double elapsed)
{
    static double due;
    static long turn;
    for (due += elapsed * 1000 / option.trickle * option.idle; due >= 1; due--, turn++) {
        const struct session *s = &idle[turn % option.idle];
        const char *octet = &NOOP[turn / option.idle % (sizeof NOOP - 1)];
        if (s->fd >= 0 && send(s->fd, octet, 1, MSG_NOSIGNAL) < 0 && errno == EAGAIN)
            note("NOOP", "an idle connection does not take an octet");
    }
}

static int by_size(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double milliseconds(double fraction)
{
    return delivered ? latencies[(long)(fraction * (delivered - 1))] * 1e3 : 0;
}

static void report(double seconds)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(latencies, delivered, sizeof *latencies, by_size);
    printf("{\"messages\": %ld, \"recipients\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"p50_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"max_ms\": %.3f, \"own_cpu_seconds\": %.3f, \"idle\": %ld, \"first_error\": \"",
           delivered, delivered * option.recipients, errors, seconds, milliseconds(0.5), milliseconds(0.99),
           milliseconds(1), used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6, idle_open);
    for (const char *at = first_error; *at; at++)
        if (*at >= ' ' && *at < 127 && *at != '"' && *at != '\\')
            putchar(*at);
    printf("\"}\n");
}

static void handle(struct session *s, unsigned events)
{
    int fd = s->fd;
    if (events & EPOLLOUT)
        flush(s);
    if (s->fd == fd && events & ~EPOLLOUT)
        receive(s);
}

int main(int count, char **arguments)
{
    for (int letter; (letter = getopt(count, arguments, "s:m:l:r:k:u:i:t:p:w")) != -1;) {
        long number = optarg ? atol(optarg) : 0;
        switch (letter) {
        case 's': option.sessions = number; break;
        case 'm': option.messages = number; break;
        case 'l': option.octets = number; break;
        case 'r': option.recipients = number; break;
        case 'k': option.per_connection = number; break;
        case 'u': option.users = number; break;
        case 'i': option.idle = number; break;
        case 't': option.trickle = number; break;
        case 'p': option.patience = number; break;
        case 'w': option.wait = 1; break;
        default: return 2;
        }
    }
    if (optind + 1 != count || option.sessions < 1 || option.recipients < 1 || option.users < 1) {
        fprintf(stderr, "usage: load [-s -m -l -r -k -u -i -t -p N] [-w] HOST:PORT|unix:PATH\n");
        return 2;
    }
    target = parse_address(arguments[optind]);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    write_message();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct session *idle = calloc(option.idle + 1, sizeof *idle);
    struct session *sessions = calloc(option.sessions, sizeof *sessions);
    struct epoll_event events[512];
    double progress = now();

    while (!connect_idle(idle) && now() - progress < option.patience) {
        int ready = epoll_wait(epoll, events, 512, 100);
        for (int i = 0; i < ready; i++)
            handle(events[i].data.ptr, events[i].events);
    }
    if (idle_open < option.idle) {
        char what[64];
        snprintf(what, sizeof what, "%ld of %ld were greeted", idle_open, option.idle);
        note("idle connections", what);
        stopping = 1;
    }
    if (option.wait) {
        printf("{\"idle\": %ld}\n", idle_open);
        fflush(stdout);
        for (char octet; read(0, &octet, 1) == 1 && octet != '\n';)
            ;
    }

    double began = now(), last = began;
    long before = progress = 0;
    for (long i = 0; i < option.sessions; i++) {
        active++;
        sessions[i].envelope = malloc(64 + option.recipients * 40);
        open_session(&sessions[i]);
    }
    for (progress = now(); active;) {
        int ready = epoll_wait(epoll, events, 512, option.trickle ? 1 : 500);
        for (int i = 0; i < ready; i++)
            handle(events[i].data.ptr, events[i].events);
        double time = now();
        if (option.trickle && option.idle)
            trickle(idle, time - last);
        last = time;
        if (before != delivered + errors)
            progress = time;
        before = delivered + errors;
        if (time - progress > option.patience) {
            note("given up", "no reply to any session");
            break;
        }
    }
    report(now() - began);
    return 0;
}
