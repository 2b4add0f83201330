/* SPDX-License-Identifier: GPL-3.0-or-later
 * Measures from outside how long an event loop is away: a NOOP each millisecond, on a connection of its own.
 *
 *   probe PID ADDRESS [ADDRESS...]
 *
 * PID is the thread that serves the first address; 0: nobody is looked at. It says {"probing": N} when all are greeted.
 * SIGTERM or SIGINT ends it, and it says one line for each NOOP: which address (0...), when it was sent (microseconds of
 * CLOCK_MONOTONIC), how long the reply took, and how much of that time this program and, for the first address, that
 * thread were ready to run while the kernel gave the cores to others (run_delay of /proc/PID/schedstat). A last line
 * that begins with "error" says what went wrong.
 */
#include "address.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

enum { PERIOD_NS = 1000000, MOST = 8 };

struct target {
    int fd, greeted, waiting;
    size_t length;
    char in[4096];
    double sent;
    long long own_delay, its_delay;
};

struct sample {
    int which;
    double sent, took;
    long long waited;
};

static struct target targets[MOST];
static struct sample *samples;
static size_t taken, room;
static int own_file, its_file = -1;
static const char *error;
static volatile sig_atomic_t ended;

static void on_signal(int number)
{
    (void)number;
    ended = 1;
}

/* Nanoseconds that a thread has waited for a core so far. */
static long long run_delay(int file)
{
    char text[128];
    long long ran, waited = 0;
    ssize_t length = file < 0 ? 0 : pread(file, text, sizeof text - 1, 0);
    if (length > 0) {
        text[length] = 0;
        sscanf(text, "%lld %lld", &ran, &waited);
    }
    return waited;
}

static int open_schedstat(const char *pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", pid, pid);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static void record(int which)
{
    struct target *t = &targets[which];
    double time = now();
    if (taken == room)
        samples = realloc(samples, (room = room ? 2 * room : 65536) * sizeof *samples);
    long long waited = run_delay(own_file) - t->own_delay;
    if (!which)
        waited += run_delay(its_file) - t->its_delay;
    samples[taken++] = (struct sample){which, t->sent, time - t->sent, waited};
    t->waiting = 0;
}

static void ask(int which)
{
    struct target *t = &targets[which];
    t->waiting = 1;
    t->own_delay = run_delay(own_file);
    if (!which)
        t->its_delay = run_delay(its_file);
    t->sent = now();
    if (send(t->fd, "NOOP\r\n", 6, MSG_NOSIGNAL) != 6)
        error = "a NOOP could not be sent";
}

static void receive(int which)
{
    struct target *t = &targets[which];
    ssize_t length = recv(t->fd, t->in + t->length, sizeof t->in - 1 - t->length, 0);
    if (length <= 0) {
        error = "a connection was closed";
        return;
    }
    t->length += length;
    t->in[t->length] = 0;
    char *end = strstr(t->in, "\r\n");
    if (!end)
        return;
    if (strncmp(t->in, t->greeted ? "250 " : "220 ", 4) || end[2]) {
        error = "a wrong reply";
        return;
    }
    t->length = 0;
    if (t->greeted)
        record(which);
    t->greeted = 1;
}

int main(int count, char **arguments)
{
    int number = count - 2;
    if (number < 1 || number > MOST) {
        fprintf(stderr, "usage: probe PID HOST:PORT|unix:PATH...\n");
        return 2;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    setpriority(PRIO_PROCESS, 0, -20); /* for root: it uses little and must be on time */
    own_file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (strcmp(arguments[1], "0"))
        its_file = open_schedstat(arguments[1]);
    struct pollfd polled[MOST + 1];
    for (int i = 0; i < number; i++) {
        struct address to = parse_address(arguments[i + 2]);
        if ((targets[i].fd = connect_to(&to)) < 0)
            die("cannot connect", arguments[i + 2]);
        polled[i] = (struct pollfd){.fd = targets[i].fd, .events = POLLIN};
    }
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), all_greeted = 0;
    struct itimerspec each = {.it_interval.tv_nsec = PERIOD_NS, .it_value.tv_nsec = PERIOD_NS};
    timerfd_settime(timer, 0, &each, NULL);
    polled[number] = (struct pollfd){.fd = timer, .events = POLLIN};

    while (!ended && !error) {
        if (poll(polled, number + 1, -1) < 0)
            continue;
        for (int i = 0; i < number; i++)
            if (polled[i].revents)
                receive(i);
        unsigned long long ticks;
        if (!polled[number].revents || read(timer, &ticks, sizeof ticks) < 0)
            continue;
        int greeted = 0;
        for (int i = 0; i < number; i++)
            greeted += targets[i].greeted;
        if (greeted < number)
            continue;
        if (!all_greeted) {
            all_greeted = 1;
            printf("{\"probing\": %d}\n", number);
            fflush(stdout);
        }
        for (int i = 0; i < number && !error; i++)
            if (!targets[i].waiting)
                ask(i);
    }
    for (int i = 0; i < number; i++)
        if (targets[i].waiting)
            record(i); /* so long at least */
    for (size_t i = 0; i < taken; i++)
        printf("%d %.0f %.0f %lld\n", samples[i].which, samples[i].sent * 1e6, samples[i].took * 1e6,
               samples[i].waited / 1000);
    if (error)
        printf("error: %s\n", error);
    return 0;
}
