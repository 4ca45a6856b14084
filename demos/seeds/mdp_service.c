/* A service in C behind a mesh router: a Majordomo worker (MDP/0.1, RFC 7) that answers in upper case.
 *
 *     cc -std=c11 -Wall -Wextra -Werror -pedantic -o mdp_service mdp_service.c -lzmq
 *     ./mdp_service tcp://127.0.0.1:5556 shout
 *
 * A request's frames come back one for one: ASCII text in upper case, all others as they are. It beats once
 * a second, begins a new conversation on a new socket when the router says DISCONNECT, says nothing for five
 * seconds, or says what MDP does not allow; SIGTERM and SIGINT make it answer what has arrived, say
 * DISCONNECT, and exit with 0. What happens goes to stderr, a line each.
 *
 * What a worker says and hears, frame by frame:
 *
 *     READY        ''  MDPW01  01  service
 *     REQUEST      ''  MDPW01  02  address  ''  body...     to the worker
 *     REPLY        ''  MDPW01  03  address  ''  body...
 *     HEARTBEAT    ''  MDPW01  04                           both ways
 *     DISCONNECT   ''  MDPW01  05                           both ways
 */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#define HEADER "MDPW01"
#define READY 0x01
#define REQUEST 0x02
#define REPLY 0x03
#define HEARTBEAT 0x04
#define DISCONNECT 0x05

enum {
    BEAT_MS = 1000,            /* as often as the router does */
    SILENCE_MS = 5 * BEAT_MS,  /* of a router that is then taken for lost */
    PAUSE_MS = 100,            /* before a new conversation; doubled each time that one came to nothing */
    LONGEST_PAUSE_MS = 5000,
    SEND_MS = 1000,            /* how long a reply waits for a full pipe, before it is given up */
    LINGER_MS = 1000,          /* for the last word */
    HALF_OPEN_MS = 3000,       /* how long the kernel waits for a peer that acknowledges nothing */
    MAX_ADDRESS = 255,         /* this router's have 8 bytes; what others send is a routing id: up to 255 */
    MAX_NAME = 255,
    MAX_MESSAGES = 100         /* read at once: there may be a signal to look after */
};

enum stage {
    PAUSING,     /* no socket until resume_at */
    CONNECTING,  /* a socket, and no connection so far */
    TALKING      /* READY was said */
};

/* What came of reading one message. */
enum outcome { NONE, GOOD, DISMISSED, NONSENSE };

struct worker {
    const char *endpoint;
    const char *service;
    void *context;
    void *socket;  /* of this conversation; NULL while pausing */
    enum stage stage;
    long long resume_at;
    long long pause_ms;
    long long heard_at;  /* the router's last sign of life */
    long long beat_at;   /* when the next heartbeat is due */
};

/* One message while it is read, frame by frame. All of it has arrived when the first frame has. */
struct reading {
    void *socket;
    zmq_msg_t frame;
    bool more;
};

static int signal_pipe[2] = {-1, -1};

static void note(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    fputs("mdp_service: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
}

static void fatal(const char *what)
{
    note("%s: %s", what, zmq_strerror(zmq_errno()));
    exit(EXIT_FAILURE);
}

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- frames ------------------------------------------------------------------------------------- */

/* Send one frame; false when it did not go, which only the first of a message may do. */
static bool send_frame(void *socket, const void *bytes, size_t size, int flags)
{
    while (zmq_send(socket, bytes, size, flags) < 0) {
        if (zmq_errno() == EAGAIN)
            return false;
        if (zmq_errno() != EINTR)
            fatal("send");
    }
    return true;
}

/* Send '', the header and a command. ZMQ_DONTWAIT is for the first frame: where that goes, all go. */
static bool send_head(void *socket, unsigned char command, int flags)
{
    return send_frame(socket, "", 0, ZMQ_SNDMORE | (flags & ZMQ_DONTWAIT))
        && send_frame(socket, HEADER, strlen(HEADER), ZMQ_SNDMORE)
        && send_frame(socket, &command, 1, flags & ZMQ_SNDMORE);
}

/* Read the first frame of a message, if there is one. */
static bool begin(struct reading *message, void *socket)
{
    message->socket = socket;
    while (zmq_msg_recv(&message->frame, socket, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() == EAGAIN)
            return false;
        if (zmq_errno() != EINTR)
            fatal("receive");
    }
    message->more = zmq_msg_more(&message->frame);
    return true;
}

/* Go on to the next frame; false when there is none. */
static bool next(struct reading *message)
{
    if (!message->more)
        return false;
    while (zmq_msg_recv(&message->frame, message->socket, 0) < 0)
        if (zmq_errno() != EINTR)
            fatal("receive");
    message->more = zmq_msg_more(&message->frame);
    return true;
}

static bool is_frame(struct reading *message, const void *bytes, size_t size)
{
    return zmq_msg_size(&message->frame) == size && memcmp(zmq_msg_data(&message->frame), bytes, size) == 0;
}

/* --- the service -------------------------------------------------------------------------------- */

/* Put text in upper case, in place. Anything but printable ASCII, tabs and line ends makes it not text. */
static void shout(unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = bytes[i];
        bool is_text = (byte >= 0x20 && byte < 0x7f) || byte == '\t' || byte == '\n' || byte == '\r';
        if (!is_text)
            return;
    }
    for (size_t i = 0; i < size; i++)
        if (bytes[i] >= 'a' && bytes[i] <= 'z')
            bytes[i] -= 'a' - 'A';
}

/* Answer a REQUEST of which the empty frame was read last. There may be no body at all. */
static void reply(struct reading *request, const void *address, size_t address_size)
{
    void *socket = request->socket;
    /* Nobody waits for a reply whose router is gone: it is given up, and the rest of the request skipped. */
    bool goes = send_head(socket, REPLY, ZMQ_SNDMORE)
        && send_frame(socket, address, address_size, ZMQ_SNDMORE)
        && send_frame(socket, "", 0, request->more ? ZMQ_SNDMORE : 0);
    while (next(request)) {
        size_t size = zmq_msg_size(&request->frame);
        zmq_msg_t answer;
        if (!goes)
            continue;
        if (zmq_msg_init_size(&answer, size) < 0)
            fatal("no memory for a frame");
        if (size > 0)
            memcpy(zmq_msg_data(&answer), zmq_msg_data(&request->frame), size);
        shout(zmq_msg_data(&answer), size);
        while (zmq_msg_send(&answer, socket, request->more ? ZMQ_SNDMORE : 0) < 0)
            if (zmq_errno() != EINTR)
                fatal("send");
    }
    if (!goes)
        note("a reply was not taken in %d ms, and is lost", SEND_MS);
}

/* Check a message frame by frame and act on it; its first frame was read. */
static enum outcome act(struct reading *message)
{
    unsigned char command;
    unsigned char address[MAX_ADDRESS];
    size_t address_size;

    if (!is_frame(message, "", 0) || !next(message) || !is_frame(message, HEADER, strlen(HEADER)))
        return NONSENSE;
    if (!next(message) || zmq_msg_size(&message->frame) != 1)
        return NONSENSE;
    command = *(unsigned char *)zmq_msg_data(&message->frame);
    if (command == HEARTBEAT)
        return message->more ? NONSENSE : GOOD;
    if (command == DISCONNECT)
        return message->more ? NONSENSE : DISMISSED;
    if (command != REQUEST || !next(message))
        return NONSENSE;
    address_size = zmq_msg_size(&message->frame);
    if (address_size == 0 || address_size > MAX_ADDRESS)
        return NONSENSE;
    memcpy(address, zmq_msg_data(&message->frame), address_size);
    if (!next(message) || !is_frame(message, "", 0))
        return NONSENSE;
    reply(message, address, address_size);
    return GOOD;
}

/* Read one message whole, whatever is in it. */
static enum outcome take(struct worker *worker)
{
    struct reading message;
    enum outcome outcome = NONE;

    zmq_msg_init(&message.frame);
    if (begin(&message, worker->socket)) {
        outcome = act(&message);
        while (next(&message))
            ;
    }
    zmq_msg_close(&message.frame);
    return outcome;
}

/* --- the conversation --------------------------------------------------------------------------- */

static void set(void *socket, int option, int value)
{
    if (zmq_setsockopt(socket, option, &value, sizeof value) < 0)
        fatal("socket option");
}

/* Open a socket that no conversation has used. */
static void dial(struct worker *worker)
{
    worker->socket = zmq_socket(worker->context, ZMQ_DEALER);
    if (worker->socket == NULL)
        fatal("socket");
    /* Without it READY and heartbeats would pile up while no router is there, and reach the next, stale. */
    set(worker->socket, ZMQ_IMMEDIATE, 1);
    set(worker->socket, ZMQ_TCP_MAXRT, HALF_OPEN_MS);
    set(worker->socket, ZMQ_SNDTIMEO, SEND_MS);
    set(worker->socket, ZMQ_LINGER, 0);
    if (zmq_connect(worker->socket, worker->endpoint) < 0)
        fatal(worker->endpoint);
    worker->stage = CONNECTING;
}

static void hang_up(struct worker *worker)
{
    if (worker->socket != NULL)
        zmq_close(worker->socket);
    worker->socket = NULL;
}

/* End this conversation, and begin another after a pause. */
static void begin_anew(struct worker *worker, const char *why, long long now)
{
    note("%s; a new conversation in %lld ms", why, worker->pause_ms);
    hang_up(worker);
    worker->stage = PAUSING;
    worker->resume_at = now + worker->pause_ms;
    worker->pause_ms = worker->pause_ms * 2 < LONGEST_PAUSE_MS ? worker->pause_ms * 2 : LONGEST_PAUSE_MS;
}

/* A connection is there: register. The router's first heartbeat will tell that it has accepted. */
static void register_service(struct worker *worker, long long now)
{
    if (!send_head(worker->socket, READY, ZMQ_SNDMORE | ZMQ_DONTWAIT))
        return;
    send_frame(worker->socket, worker->service, strlen(worker->service), 0);
    note("READY for %s at %s", worker->service, worker->endpoint);
    worker->stage = TALKING;
    worker->heard_at = now;
    worker->beat_at = now + BEAT_MS;
}

/* Read what has arrived; false when the conversation is over. */
static bool read_all(struct worker *worker, long long now)
{
    for (int i = 0; i < MAX_MESSAGES; i++) {
        switch (take(worker)) {
        case NONE:
            return true;
        case GOOD:
            worker->heard_at = now;
            worker->pause_ms = PAUSE_MS;
            break;
        case DISMISSED:
            begin_anew(worker, "the router said DISCONNECT", now);
            return false;
        case NONSENSE:
            begin_anew(worker, "the router said what is not MDP", now);
            return false;
        }
    }
    return true;
}

/* How long there is nothing to do but wait. */
static long patience_ms(const struct worker *worker, long long now)
{
    long long until = worker->resume_at;
    if (worker->stage == CONNECTING)
        return -1;
    if (worker->stage == TALKING) {
        until = worker->heard_at + SILENCE_MS;
        if (worker->beat_at < until)
            until = worker->beat_at;
    }
    return until > now ? (long)(until - now) : 0;
}

/* Wait once for the router, the clock or a signal, and do what is then to do; false when told to stop. */
static bool turn(struct worker *worker)
{
    zmq_pollitem_t items[2] = {
        {NULL, signal_pipe[0], ZMQ_POLLIN, 0},
        {worker->socket, 0, ZMQ_POLLIN, 0},
    };
    long long now;

    if (worker->stage == CONNECTING)
        items[1].events |= ZMQ_POLLOUT;
    if (zmq_poll(items, worker->socket == NULL ? 1 : 2, patience_ms(worker, now_ms())) < 0) {
        if (zmq_errno() != EINTR)
            fatal("poll");
        return true;
    }
    if (items[0].revents)
        return false;
    now = now_ms();
    if (worker->stage == PAUSING) {
        if (now >= worker->resume_at)
            dial(worker);
        return true;
    }
    if (!read_all(worker, now))
        return true;
    if (worker->stage == CONNECTING) {
        if (items[1].revents & ZMQ_POLLOUT)
            register_service(worker, now);
        return true;
    }
    /* Judged only after what came was read: it may have been us who slept. */
    if (now - worker->heard_at >= SILENCE_MS) {
        begin_anew(worker, "nothing heard of the router", now);
    } else if (now >= worker->beat_at) {
        /* One that does not go is not missed: the connection is lost, and a router that comes back on it
         * answers the next with DISCONNECT. */
        send_head(worker->socket, HEARTBEAT, ZMQ_DONTWAIT);
        worker->beat_at = now + BEAT_MS;
    }
    return true;
}

/* Answer what has arrived, and take leave. */
static void leave(struct worker *worker)
{
    if (worker->stage == TALKING && read_all(worker, now_ms())) {
        set(worker->socket, ZMQ_LINGER, LINGER_MS);
        send_head(worker->socket, DISCONNECT, ZMQ_DONTWAIT);
    }
    hang_up(worker);
    while (zmq_ctx_term(worker->context) < 0 && zmq_errno() == EINTR)
        ;
    note("stopped");
}

/* --- the process -------------------------------------------------------------------------------- */

static void on_signal(int number)
{
    int before = errno;
    ssize_t written = write(signal_pipe[1], "", 1);
    (void)written; /* a full pipe has told it already */
    (void)number;
    errno = before;
}

/* Make signals readable: a flag alone would be seen too late if one came just before the wait. */
static void watch_signals(void)
{
    struct sigaction action;

    if (pipe(signal_pipe) < 0) {
        perror("mdp_service: pipe");
        exit(EXIT_FAILURE);
    }
    for (int i = 0; i < 2; i++) {
        fcntl(signal_pipe[i], F_SETFL, O_NONBLOCK);
        fcntl(signal_pipe[i], F_SETFD, FD_CLOEXEC);
    }
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

static bool is_fit_name(const char *name)
{
    size_t size = strlen(name);
    return size > 0 && size <= MAX_NAME && name[0] != '/' && strncmp(name, "mmi.", 4) != 0;
}

int main(int argc, char **argv)
{
    struct worker worker = {0};

    if (argc != 3 || !is_fit_name(argv[2])) {
        fputs("usage: mdp_service ENDPOINT SERVICE\n"
              "  ENDPOINT  where a router listens for services, as in tcp://127.0.0.1:5556\n"
              "  SERVICE   1 to 255 bytes that begin neither with / nor with mmi.\n",
              stderr);
        return 2;
    }
    watch_signals();
    worker.endpoint = argv[1];
    worker.service = argv[2];
    worker.pause_ms = PAUSE_MS;
    worker.context = zmq_ctx_new();
    if (worker.context == NULL)
        fatal("context");
    dial(&worker);
    while (turn(&worker))
        ;
    leave(&worker);
    close(signal_pipe[0]);
    close(signal_pipe[1]);
    return EXIT_SUCCESS;
}
