/* The limit: what libzmq does when nothing is in its way. No JSON, no Python, bytes in and out.
 *
 *     limit proxy  FRONT BACK          ROUTER and DEALER, joined by zmq_proxy
 *     limit router FRONT BACK          a Majordomo router: the least recently used worker, with credit
 *     limit worker ENDPOINT DIALECT    answers with what was sent
 *     limit client ENDPOINT DIALECT    keeps calls in flight, from one thread
 *     limit version                    of libzmq
 *
 * DIALECT is "plain" behind the proxy, "mdp" behind the router. Frames, without routing ids:
 *
 *     plain   [body]
 *     mdp     client [MDPC02][01][service][body], worker [MDPW02][02][client id][][body]
 *
 * A body begins with a number (8 bytes) and a kind: CALL is answered, NOTE is counted. Processes keep the
 * harness's manners: they say when they are ready, take a job in JSON a line, and end with standard input.
 */

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { CALL = 'c', NOTE = 'n' };
enum { KIND_AT = 8, TEXT_AT = 9 };
enum { MOST_FRAMES = 8, CREDIT = 64, MOST_WORKERS = 16, TURN = 64 };
enum { HIGH_WATER = 100000 }; /* more than is ever in flight: nothing is dropped, and one-way messages wait */

static const char SERVICE[] = "echo";

static void *context;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    fprintf(stderr, "limit: error: %s: %s\n", what, zmq_strerror(errno));
    exit(1);
}

static void *open_socket(int type, const char *endpoint, int binds) {
    void *socket = zmq_socket(context, type);
    int high = HIGH_WATER, linger = 0;
    zmq_setsockopt(socket, ZMQ_SNDHWM, &high, sizeof high);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &high, sizeof high);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    if (binds ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint)) fail(endpoint);
    return socket;
}

/* --- messages ----------------------------------------------------------------------------------- */

typedef struct {
    int n;
    zmq_msg_t frame[MOST_FRAMES];
} Message;

/* Receive a whole message; 0 if there is none and the flags say not to wait. Frames beyond the array are
 * read and dropped: such a message is of no dialect. */
static int receive(void *socket, Message *message, int flags) {
    int more = 1;
    message->n = 0;
    while (more) {
        zmq_msg_t spare, *frame = message->n < MOST_FRAMES ? &message->frame[message->n] : &spare;
        zmq_msg_init(frame);
        while (zmq_msg_recv(frame, socket, flags) < 0) {
            if (errno == EAGAIN) return 0;
            if (errno != EINTR) fail("receive");
        }
        more = zmq_msg_more(frame);
        if (frame == &spare) zmq_msg_close(&spare);
        else message->n++;
    }
    return 1;
}

static void drop(Message *message) {
    for (int i = 0; i < message->n; i++) zmq_msg_close(&message->frame[i]);
}

static void put(void *socket, const void *data, size_t size, int more) {
    if (zmq_send(socket, data, size, more ? ZMQ_SNDMORE : 0) < 0) fail("send");
}

/* Send a frame that was received, without a copy; it is empty afterwards. */
static void pass(void *socket, zmq_msg_t *frame, int more) {
    if (zmq_msg_send(frame, socket, more ? ZMQ_SNDMORE : 0) < 0) fail("send");
}

static int is(zmq_msg_t *frame, const char *text) {
    size_t size = strlen(text);
    return zmq_msg_size(frame) == size && !memcmp(zmq_msg_data(frame), text, size);
}

/* --- proxy and router --------------------------------------------------------------------------- */

static void proxy(const char *front, const char *back) {
    zmq_proxy(open_socket(ZMQ_ROUTER, front, 1), open_socket(ZMQ_DEALER, back, 1), NULL);
}

typedef struct {
    size_t size;
    char bytes[256];
} Id;

/* A worker stands in the queue once for each request that it may be sent now: so its credit is kept, and
 * whoever was served last comes last. */
static struct {
    Id id[MOST_WORKERS * CREDIT];
    unsigned head, n;
} idle;

static void offer(zmq_msg_t *worker) {
    if (idle.n == MOST_WORKERS * CREDIT) return;
    Id *id = &idle.id[(idle.head + idle.n++) % (MOST_WORKERS * CREDIT)];
    id->size = zmq_msg_size(worker);
    memcpy(id->bytes, zmq_msg_data(worker), id->size);
}

static void from_worker(void *front, Message *m) {
    /* [worker id][MDPW02][01][service], or [worker id][MDPW02][04][client id][][body] */
    if (m->n == 4 && is(&m->frame[1], "MDPW02") && is(&m->frame[2], "\1") && is(&m->frame[3], SERVICE)) {
        for (int i = 0; i < CREDIT; i++) offer(&m->frame[0]);
    } else if (m->n == 6 && is(&m->frame[1], "MDPW02") && is(&m->frame[2], "\4")) {
        offer(&m->frame[0]);
        pass(front, &m->frame[3], 1);
        put(front, "MDPC02", 6, 1);
        put(front, "\3", 1, 1);
        put(front, SERVICE, strlen(SERVICE), 1);
        pass(front, &m->frame[5], 0);
    }
    drop(m);
}

static void from_client(void *back, Message *m) {
    /* [client id][MDPC02][01][service][body] */
    if (m->n == 5 && is(&m->frame[1], "MDPC02") && is(&m->frame[2], "\1") && is(&m->frame[3], SERVICE)) {
        Id *worker = &idle.id[idle.head];
        put(back, worker->bytes, worker->size, 1);
        idle.head = (idle.head + 1) % (MOST_WORKERS * CREDIT);
        idle.n--;
        put(back, "MDPW02", 6, 1);
        put(back, "\2", 1, 1);
        pass(back, &m->frame[0], 1);
        put(back, "", 0, 1);
        pass(back, &m->frame[4], 0);
    }
    drop(m);
}

static void router(const char *front_endpoint, const char *back_endpoint) {
    void *front = open_socket(ZMQ_ROUTER, front_endpoint, 1), *back = open_socket(ZMQ_ROUTER, back_endpoint, 1);
    Message m;
    for (;;) {
        zmq_pollitem_t items[] = {{back, 0, ZMQ_POLLIN, 0}, {front, 0, ZMQ_POLLIN, 0}};
        /* While nobody is idle, requests wait in the front's pipes. */
        zmq_poll(items, idle.n ? 2 : 1, -1);
        for (int i = 0; i < TURN && receive(back, &m, ZMQ_DONTWAIT); i++) from_worker(front, &m);
        for (int i = 0; i < TURN && idle.n && receive(front, &m, ZMQ_DONTWAIT); i++) from_client(back, &m);
    }
}

/* --- worker ------------------------------------------------------------------------------------- */

static volatile uint64_t noted;
static volatile double noted_at;

static void worker(const char *endpoint, int mdp) {
    void *socket = open_socket(ZMQ_DEALER, endpoint, 0);
    Message m;
    if (mdp) {
        put(socket, "MDPW02", 6, 1);
        put(socket, "\1", 1, 1);
        put(socket, SERVICE, strlen(SERVICE), 0);
    }
    while (receive(socket, &m, 0)) {
        zmq_msg_t *body = &m.frame[m.n - 1];
        if (m.n != (mdp ? 5 : 2) || zmq_msg_size(body) < TEXT_AT) {
            drop(&m);
        } else if (((char *)zmq_msg_data(body))[KIND_AT] == NOTE) {
            noted_at = now();
            noted++;
            drop(&m);
        } else if (mdp) {
            put(socket, "MDPW02", 6, 1);
            put(socket, "\4", 1, 1);
            pass(socket, &m.frame[2], 1);
            pass(socket, &m.frame[3], 1);
            pass(socket, body, 0);
        } else {
            pass(socket, &m.frame[0], 1);
            pass(socket, body, 0);
        }
    }
}

/* --- client ------------------------------------------------------------------------------------- */

typedef struct {
    void *socket;
    int mdp;
    size_t size;
    char *body;
} Client;

static void send_body(Client *client, uint64_t number, char kind) {
    memcpy(client->body, &number, sizeof number);
    client->body[KIND_AT] = kind;
    if (client->mdp) {
        put(client->socket, "MDPC02", 6, 1);
        put(client->socket, "\1", 1, 1);
        put(client->socket, SERVICE, strlen(SERVICE), 1);
    }
    put(client->socket, client->body, client->size, 0);
}

/* Wait for a reply, check that it is what was sent, and return its number. */
static uint64_t receive_reply(Client *client) {
    Message m;
    uint64_t number;
    receive(client->socket, &m, 0);
    zmq_msg_t *body = &m.frame[m.n - 1];
    const char *bytes = zmq_msg_data(body);
    if (m.n != (client->mdp ? 4 : 1) || (client->mdp && !is(&m.frame[1], "\3")) ||
        zmq_msg_size(body) != client->size ||
        memcmp(bytes + TEXT_AT, client->body + TEXT_AT, client->size - TEXT_AT)) {
        fprintf(stderr, "limit: error: a reply is not what was sent\n");
        exit(1);
    }
    memcpy(&number, bytes, sizeof number);
    drop(&m);
    return number;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void load(Client *client, unsigned in_flight, double seconds) {
    size_t n = 0, room = 1 << 16;
    double *times = malloc(room * sizeof *times), *starts = malloc(in_flight * sizeof *starts);
    double began = now(), end = began + seconds;
    for (unsigned i = 0; i < in_flight; i++) {
        starts[i] = now();
        send_body(client, i, CALL);
    }
    for (unsigned left = in_flight; left;) {
        uint64_t number = receive_reply(client);
        double at = now();
        if (number >= in_flight) fail("number");
        if (n == room) times = realloc(times, (room *= 2) * sizeof *times);
        times[n++] = at - starts[number];
        if (at < end) {
            starts[number] = at;
            send_body(client, number, CALL);
        } else {
            left--;
        }
    }
    double elapsed = now() - began;
    qsort(times, n, sizeof *times, by_value);
    printf("{\"calls\": %zu, \"elapsed_s\": %.6f, \"p50_us\": %.3f, \"p99_us\": %.3f}\n", n, elapsed,
           times[(n * 50 + 99) / 100 - 1] * 1e6, times[(n * 99 + 99) / 100 - 1] * 1e6);
    free(times);
    free(starts);
}

static void notes(Client *client, double seconds) {
    double began = now();
    uint64_t sent = 0;
    while (now() < began + seconds)
        for (int i = 0; i < TURN; i++) send_body(client, sent++, NOTE);
    printf("{\"sent\": %llu, \"began\": %.6f}\n", (unsigned long long)sent, began);
}

/* --- manners ------------------------------------------------------------------------------------ */

static double number_in(const char *job, const char *name) {
    const char *found = strstr(job, name);
    return found ? atof(strchr(found, ':') + 1) : 0.0;
}

/* Read jobs until standard input ends: the client's own loop, everybody else's second thread. */
static void *attend(void *given) {
    Client *client = given;
    char job[4096];
    printf("{\"ready\": true}\n");
    fflush(stdout);
    while (fgets(job, sizeof job, stdin)) {
        if (!client) {
            printf("{\"n\": %llu, \"at\": %.6f}\n", (unsigned long long)noted, noted_at);
        } else {
            client->size = (size_t)number_in(job, "\"size\"");
            client->body = realloc(client->body, client->size);
            memset(client->body, 'x', client->size);
            if (strstr(job, "\"first\"")) {
                send_body(client, 0, CALL);
                receive_reply(client);
                printf("{\"at\": %.6f}\n", now());
            } else if (strstr(job, "\"notes\"")) {
                notes(client, number_in(job, "\"seconds\""));
            } else {
                load(client, (unsigned)number_in(job, "\"in_flight\""), number_in(job, "\"seconds\""));
            }
        }
        fflush(stdout);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "version")) {
        int major, minor, patch;
        zmq_version(&major, &minor, &patch);
        printf("%d.%d.%d\n", major, minor, patch);
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: limit proxy|router FRONT BACK, limit worker|client ENDPOINT plain|mdp\n");
        return 2;
    }
    int mdp = !strcmp(argv[3], "mdp");
    context = zmq_ctx_new();
    if (!strcmp(argv[1], "client")) {
        Client client = {open_socket(ZMQ_DEALER, argv[2], 0), mdp, 0, NULL};
        attend(&client);
    }
    pthread_t thread;
    pthread_create(&thread, NULL, attend, NULL);
    if (!strcmp(argv[1], "proxy")) proxy(argv[2], argv[3]);
    else if (!strcmp(argv[1], "router")) router(argv[2], argv[3]);
    else worker(argv[2], mdp);
    return 1;
}
