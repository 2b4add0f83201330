/* SPDX-License-Identifier: GPL-3.0-or-later
 * An LMTP server that accepts and forgets everything, and counts it: the backend of the bench.
 *
 *   sink ADDRESS...      HOST:PORT, unix:PATH; log:PATH is a datagram socket whose log is counted and dropped
 *
 * It says {"listening": [ADDRESS...]} when it serves, with the ports that the kernel chose. On SIGUSR1, and when SIGTERM
 * or SIGINT ends it, it says one line of JSON: a list with an object for each address. One thread, one epoll loop.
 *
 * peak_transactions: most transactions between MAIL and the last final reply at one moment. errors: commands that a
 * correct client does not send, connections dropped amid a transaction, clients that do not read their replies.
 * log_lines: datagrams; deliveries_logged: how often they say status=sent, which is once for each recipient.
 */
#include "address.h"
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>

enum { LINE = 2048, READ = 262144, OUT = 65536 };
static const char END[] = "\r\n.\r\n";
static const char DELIVERED[] = "status=sent";

struct listener {
    int fd, family, is_log;
    char address[128];
    unsigned long connections, messages, recipients, octets, errors, log_lines, deliveries_logged;
    long open, peak_open, transactions, peak_transactions;
};

struct connection {
    struct listener *of;
    int fd, has_sender, in_data, recipients, quit;
    size_t matched; /* octets of END that the data so far ends with */
    size_t line_length;
    char line[LINE];
};


static volatile sig_atomic_t asked, ended;
static char out[OUT];
static size_t out_length;

static void on_signal(int number)
{
    if (number == SIGUSR1)
        asked = 1;
    else
        ended = 1;
}

static void flush(struct connection *c)
{
    if (out_length && send(c->fd, out, out_length, MSG_NOSIGNAL) != (ssize_t)out_length) {
        c->of->errors++;
        c->quit = 1;
    }
    out_length = 0;
}

static void reply(struct connection *c, const char *text)
{
    size_t length = strlen(text);
    if (out_length + length > OUT)
        flush(c);
    memcpy(out + out_length, text, length);
    out_length += length;
}

static void refuse(struct connection *c, const char *text)
{
    c->of->errors++;
    reply(c, text);
}

static void end_transaction(struct connection *c)
{
    c->of->transactions -= c->has_sender;
    c->has_sender = c->in_data = c->recipients = 0;
}

static void command(struct connection *c, const char *line)
{
    struct listener *l = c->of;
    if (!strncasecmp(line, "RCPT TO:<", 9)) {
        if (!c->has_sender) {
            refuse(c, "503 5.5.1 MAIL first\r\n");
        } else {
            c->recipients++;
            reply(c, "250 2.1.5 Ok\r\n");
        }
    } else if (!strncasecmp(line, "MAIL FROM:<", 11)) {
        if (c->has_sender) {
            refuse(c, "503 5.5.1 nested MAIL\r\n");
        } else {
            c->has_sender = 1;
            if (++l->transactions > l->peak_transactions)
                l->peak_transactions = l->transactions;
            reply(c, "250 2.1.0 Ok\r\n");
        }
    } else if (!strcasecmp(line, "DATA")) {
        if (!c->recipients) {
            refuse(c, "503 5.5.1 no recipients\r\n");
        } else {
            c->in_data = 1;
            c->matched = 2; /* the data starts as if after a line end */
            reply(c, "354 go ahead\r\n");
        }
    } else if (!strncasecmp(line, "LHLO ", 5)) {
        end_transaction(c);
        reply(c, "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE\r\n");
    } else if (!strcasecmp(line, "RSET")) {
        end_transaction(c);
        reply(c, "250 2.0.0 Ok\r\n");
    } else if (!strcasecmp(line, "NOOP")) {
        reply(c, "250 2.0.0 Ok\r\n");
    } else if (!strcasecmp(line, "QUIT")) {
        reply(c, "221 2.0.0 Bye\r\n");
        c->quit = 1;
    } else {
        refuse(c, "500 5.5.2 what?\r\n");
    }
}

/* How many of these octets are message data; all, or up to the end of the final dot's line. */
static size_t take_data(struct connection *c, const char *octets, size_t length)
{
    size_t i = 0;
    while (i < length) {
        if (!c->matched) {
            const char *found = memmem(octets + i, length - i, END, 3);
            if (!found) {
                c->matched = octets[length - 1] == '\r'                                           ? 1
                             : length - i >= 2 && octets[length - 2] == '\r' && octets[length - 1] == '\n' ? 2
                                                                                                           : 0;
                return length;
            }
            i = found - octets + 3;
            c->matched = 3;
            continue;
        }
        char octet = octets[i++];
        c->matched = octet == END[c->matched] ? c->matched + 1 : octet == '\r';
        if (c->matched == sizeof END - 1) {
            c->of->messages++;
            c->of->recipients += c->recipients;
            for (int each = 0; each < c->recipients; each++)
                reply(c, "250 2.0.0 stored\r\n");
            end_transaction(c);
            break;
        }
    }
    return i;
}

static void take_command(struct connection *c, const char *octets, size_t length, size_t *taken)
{
    const char *newline = memchr(octets, '\n', length);
    size_t part = newline ? (size_t)(newline - octets) + 1 : length;
    *taken = part;
    if (c->line_length + part >= LINE) {
        refuse(c, "500 5.5.2 line too long\r\n");
        c->quit = 1;
        return;
    }
    memcpy(c->line + c->line_length, octets, part);
    c->line_length += part;
    if (!newline)
        return;
    size_t end = c->line_length - 1;
    if (end && c->line[end - 1] == '\r')
        end--;
    c->line[end] = 0;
    c->line_length = 0;
    command(c, c->line);
}

static void hang_up(struct connection *c)
{
    c->of->errors += c->has_sender;
    end_transaction(c);
    c->of->open--;
    close(c->fd);
    free(c);
}

static void serve(struct connection *c)
{
    static char in[READ];
    ssize_t length = recv(c->fd, in, sizeof in, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (length <= 0) {
        hang_up(c);
        return;
    }
    for (size_t at = 0, taken; at < (size_t)length && !c->quit; at += taken) {
        if (c->in_data) {
            taken = take_data(c, in + at, length - at);
            c->of->octets += taken;
        } else {
            take_command(c, in + at, length - at, &taken);
        }
    }
    flush(c);
    if (c->quit)
        hang_up(c);
}

static void greet(struct listener *l, int epoll)
{
    int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    no_delay(fd, l->family);
    struct connection *c = calloc(1, sizeof *c);
    c->of = l;
    c->fd = fd;
    l->connections++;
    if (++l->open > l->peak_open)
        l->peak_open = l->open;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    reply(c, "220 sink LMTP\r\n");
    flush(c);
}

static void drain_log(struct listener *l)
{
    static char datagram[65536];
    ssize_t length;
    while ((length = recv(l->fd, datagram, sizeof datagram, MSG_DONTWAIT)) > 0) {
        l->log_lines++;
        for (char *at = datagram, *end = datagram + length; (at = memmem(at, end - at, DELIVERED, sizeof DELIVERED - 1));
             at++)
            l->deliveries_logged++;
    }
}

static void open_listener(struct listener *l, const char *text)
{
    if (strlen(text) >= sizeof l->address)
        die("address too long", text);
    l->is_log = !strncmp(text, "log:", 4);
    char local[128];
    snprintf(local, sizeof local, "unix:%s", text + (l->is_log ? 4 : 0));
    struct address at = parse_address(l->is_log ? local : text);
    int on = 1, large = 4 << 20;
    l->family = at.name.any.sa_family;
    l->fd = socket(l->family, (l->is_log ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (l->is_log) /* the length of the queue is net.unix.max_dgram_qlen, which is not ours to change */
        setsockopt(l->fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    if (bind(l->fd, &at.name.any, at.length) || (!l->is_log && listen(l->fd, 4096)))
        die("cannot listen", text);
    strcpy(l->address, text);
    if (l->family == AF_INET) {
        getsockname(l->fd, &at.name.any, &at.length);
        sprintf(strrchr(l->address, ':'), ":%d", ntohs(at.name.inet.sin_port));
    }
}

static void report(const struct listener *l, int count)
{
    for (int i = 0; i < count; i++, l++)
        printf("%s{\"address\": \"%s\", \"connections\": %lu, \"peak_connections\": %ld, \"peak_transactions\": %ld, "
               "\"messages\": %lu, \"recipients\": %lu, \"octets\": %lu, \"errors\": %lu, \"log_lines\": %lu, "
               "\"deliveries_logged\": %lu}",
               i ? ", " : "[", l->address, l->connections, l->peak_open, l->peak_transactions, l->messages,
               l->recipients, l->octets, l->errors, l->log_lines, l->deliveries_logged);
    printf("]\n");
    fflush(stdout);
}

int main(int count, char **arguments)
{
    if (count < 2) {
        fprintf(stderr, "usage: sink HOST:PORT|unix:PATH|log:PATH...\n");
        return 2;
    }
    struct listener *listeners = calloc(--count, sizeof *listeners);
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t ours, before;
    sigemptyset(&ours);
    for (const int *number = (const int[]){SIGUSR1, SIGTERM, SIGINT, 0}; *number; number++) {
        sigaction(*number, &action, NULL);
        sigaddset(&ours, *number);
    }
    sigprocmask(SIG_BLOCK, &ours, &before); /* they come within epoll_pwait only */
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < count; i++) {
        open_listener(&listeners[i], arguments[i + 1]);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listeners[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[i].fd, &event);
        printf("%s\"%s\"", i ? ", " : "{\"listening\": [", listeners[i].address);
    }
    printf("]}\n");
    fflush(stdout);
    struct epoll_event events[256];
    while (!ended) {
        int ready = epoll_pwait(epoll, events, 256, -1, &before);
        for (int i = 0; i < ready; i++) {
            struct listener *l = events[i].data.ptr;
            if (l < listeners || l >= listeners + count)
                serve(events[i].data.ptr);
            else if (l->is_log)
                drain_log(l);
            else
                greet(l, epoll);
        }
        if (asked) {
            asked = 0;
            report(listeners, count);
        }
    }
    report(listeners, count);
    return 0;
}
