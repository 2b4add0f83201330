/* SPDX-License-Identifier: GPL-3.0-or-later
 * What the bench's three programs share: addresses on the command line, sockets that never block, the time.
 * An address is HOST:PORT (IPv4, numeric; port 0 lets the kernel choose when listening) or unix:PATH.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in inet;
        struct sockaddr_un local;
    } name;
    socklen_t length;
};

__attribute__((noreturn)) static void die(const char *what, const char *about)
{
    fprintf(stderr, "%s: %s%s%s\n", what, about, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static struct address parse_address(const char *text)
{
    struct address found = {0};
    errno = 0;
    if (!strncmp(text, "unix:", 5)) {
        if (strlen(text + 5) >= sizeof found.name.local.sun_path)
            die("the path of a unix socket is too long", text);
        found.name.local.sun_family = AF_UNIX;
        strcpy(found.name.local.sun_path, text + 5);
        found.length = sizeof found.name.local;
        return found;
    }
    const char *colon = strrchr(text, ':');
    char host[64];
    if (!colon || colon - text >= (long)sizeof host)
        die("neither HOST:PORT nor unix:PATH", text);
    memcpy(host, text, colon - text);
    host[colon - text] = 0;
    found.name.inet.sin_family = AF_INET;
    found.name.inet.sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, host, &found.name.inet.sin_addr) != 1)
        die("not a numeric IPv4 address", text);
    found.length = sizeof found.name.inet;
    return found;
}

/* Replies and commands in writes of their own must not wait for each other's acknowledgement. */
static void no_delay(int fd, int family)
{
    int on = 1;
    if (family == AF_INET)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

__attribute__((unused)) static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A connection under way, or -1 with errno. */
__attribute__((unused)) static int connect_to(const struct address *to)
{
    int fd = socket(to->name.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    no_delay(fd, to->name.any.sa_family);
    if (connect(fd, &to->name.any, to->length) && errno != EINPROGRESS) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}
