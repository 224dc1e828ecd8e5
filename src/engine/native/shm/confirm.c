#include "engine/native/shm/confirm.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/thread.h"
#include "engine/native/shm/shm.h"

/* -- The owner ------------------------------------------------------------ */

static bool
is_same_map_info(const vnxi_map_info_t *a, const vnxi_map_info_t *b)
{
    return a->fd < 0 || b->fd < 0
               ? a->fd < 0 && b->fd < 0
               : a->offset == b->offset && a->st_dev == b->st_dev &&
                     a->st_ino == b->st_ino;
}

static vnxi_map_info_t
map_info_of(const vnxi_port_t *port, const vnxi_region_t *region)
{
    return vnxi_shm_slot_map_info(
        vnxi_region_slot(region, port->config.number));
}

/* Return whether the region is registered, and shared as the row says. */
static bool
is_ours(const vnxi_port_t *port, const vnxi_region_t *region,
        const vnxi_link_row_t *row)
{
    if (region == NULL) {
        return false;
    }
    const vnxi_map_info_t map_info = map_info_of(port, region);
    return is_same_map_info(&map_info, &row->map_info);
}

uint64_t
vnxi_confirm_on_question(void *context, const vnxi_link_row_t *rows,
                         size_t count, bool *refused_p)
{
    const vnxi_port_t *port = context;
    vnxi_region_t keys[VNXI_HUB_ROWS_MAX] = {0};
    vnxi_region_t *found[VNXI_HUB_ROWS_MAX];

    for (size_t i = 0; i < count; i++) {
        keys[i] = (vnxi_region_t){.mem = rows[i].mem,
                                  .addr = rows[i].desc.addr,
                                  .len = rows[i].desc.len,
                                  .dev = rows[i].desc.dev};
    }
    uint64_t epoch =
        vnxi_registry_find(port->config.registry, keys, count, found);
    for (size_t i = 0; i < count; i++) {
        refused_p[i] = !is_ours(port, found[i], &rows[i]);
        vnxi_region_release(found[i]);
    }
    return epoch;
}

/* -- Asking --------------------------------------------------------------- */

void
vnxi_confirm_fini(vnxi_confirm_t *confirm)
{
    vnxi_region_table_release(confirm->table);
    free(confirm->asked);
    confirm->table = NULL;
    confirm->asked = NULL;
}

/* A peer's descriptor number is not kept here; a shared region is identified
 * by its file. */
static vnxi_link_row_t
row_of(const vnxi_port_t *port, const vnxi_region_t *region)
{
    vnxi_map_info_t map_info = map_info_of(port, region);

    map_info.fd = map_info.st_ino != 0 ? 0 : -1;
    return (vnxi_link_row_t){
        .mem = region->mem,
        .desc = {region->addr, region->len, region->dev},
        .map_info = map_info,
    };
}

/* A question, sent after the lock is released. */
typedef struct question {
    vnxi_link_t *link;     /* retained; NULL: nothing to send */
    vnxi_link_row_t *rows; /* owned */
    size_t count;
    uint64_t token;
} question_t;

/* Make room for a question; false: no memory. */
static bool
make_room_lock_held(vnxi_confirm_t *confirm, question_t *question)
{
    size_t most = vnxi_region_table_count(confirm->table);

    most = most < VNXI_LINK_ROWS_MAX ? most : VNXI_LINK_ROWS_MAX;
    if (confirm->asked == NULL) {
        confirm->asked = malloc((most + 1) * sizeof *confirm->asked);
    }
    question->rows = malloc((most + 1) * sizeof *question->rows);
    return confirm->asked != NULL && question->rows != NULL;
}

static void
take_rows_lock_held(vnxi_shm_conn_t *conn, question_t *question)
{
    vnxi_confirm_t *confirm = &conn->confirm;
    size_t end = vnxi_region_table_count(confirm->table);

    while (confirm->next < end && question->count < VNXI_LINK_ROWS_MAX) {
        vnxi_region_t *region =
            vnxi_region_table_at(confirm->table, confirm->next++);
        if (vnxi_region_state(region) == VNXI_REGION_UNCONFIRMED) {
            confirm->asked[question->count] = region;
            question->rows[question->count++] =
                row_of(conn->base.port, region);
        }
    }
}

/* Most tables that are checked again have nothing to ask. */
static void
skip_settled_lock_held(vnxi_confirm_t *confirm)
{
    size_t end = vnxi_region_table_count(confirm->table);

    while (confirm->next < end &&
           vnxi_region_state(vnxi_region_table_at(
               confirm->table, confirm->next)) != VNXI_REGION_UNCONFIRMED) {
        confirm->next++;
    }
}

/* The metadata has an epoch that the owner has not sent yet.  Only the owner
 * can confirm it: a question without rows asks for its epoch. */
static bool
asks_for_epoch(const vnxi_shm_conn_t *conn)
{
    return conn->epoch > conn->confirm.heard;
}

/* Make the next question, if there is one.  False: no memory. */
static bool
make_question_lock_held(vnxi_shm_conn_t *conn, question_t *question)
{
    vnxi_confirm_t *confirm = &conn->confirm;

    skip_settled_lock_held(confirm);
    if (confirm->next == vnxi_region_table_count(confirm->table) &&
        !asks_for_epoch(conn)) {
        vnxi_confirm_fini(confirm);
        return true;
    }
    if (!make_room_lock_held(confirm, question)) {
        return false;
    }
    take_rows_lock_held(conn, question);
    confirm->asked_count = question->count;
    confirm->is_open = true;
    confirm->least = confirm->heard;
    question->token = ++confirm->token;
    question->link = vnxi_link_retain(conn->link);
    return true;
}

/* If the link has ended, it reports its end itself, with the cause. */
static void
send_question(vnxi_shm_conn_t *conn, bool has_memory, question_t *question)
{
    const vnxi_port_host_t *host = &conn->base.port->config.host;
    vnx_status_t status = VNX_OK;
    vnx_error_t error;

    if (!has_memory) {
        status = vnxi_error_no_memory(&error, "vnx_agent_load_metadata",
                                      sizeof *question->rows);
    } else if (question->link != NULL) {
        status = vnxi_link_ask(question->link, question->token, question->rows,
                               question->count, &error);
    }
    vnxi_link_release(question->link);
    free(question->rows);
    if (status != VNX_OK && status != VNX_ERR_REMOTE_DISCONNECT) {
        host->lost(host->context, conn->base.port->config.number, conn->id,
                   error.cause);
    }
}

static void
begin_lock_held(vnxi_shm_conn_t *conn)
{
    vnxi_confirm_t *confirm = &conn->confirm;

    vnxi_confirm_fini(confirm);
    confirm->table = vnxi_region_table_retain(conn->table);
    confirm->next = 0;
    confirm->again = false;
}

void
vnxi_confirm_ask(vnxi_shm_conn_t *conn)
{
    question_t question = {0};
    bool has_memory = true;

    vnxi_mutex_lock(&conn->lock);
    if (conn->confirm.is_open) {
        conn->confirm.again = true;
    } else {
        begin_lock_held(conn);
        has_memory = make_question_lock_held(conn, &question);
    }
    vnxi_mutex_unlock(&conn->lock);
    send_question(conn, has_memory, &question);
}

/* -- Messages from the owner ---------------------------------------------- */

static void
hear_lock_held(vnxi_confirm_t *confirm, uint64_t epoch)
{
    confirm->heard = epoch > confirm->heard ? epoch : confirm->heard;
}

/* True: the caller calls vnxi_confirm_ask() after releasing the lock. */
static bool
revoked_lock_held(vnxi_shm_conn_t *conn, vnxi_region_t *region, uint64_t epoch)
{
    vnxi_native_region_t *known = vnxi_native_region(region);

    hear_lock_held(&conn->confirm, epoch);
    if (region == NULL || vnxi_region_is_gone(region) ||
        (vnxi_region_state(region) == VNXI_REGION_USABLE &&
         epoch <= known->proved)) {
        return false;
    }
    if (atomic_load(&known->epoch) < epoch) {
        vnxi_region_revoke(region);
        return false;
    }
    known->proved = epoch > known->proved ? epoch : known->proved;
    vnxi_region_doubt(region);
    return true;
}

/* A conn without a table has not asked about any region. */
static void
revoked(vnxi_shm_conn_t *conn, uint64_t epoch, vnx_mem_t mem,
        const vnx_desc_t *desc)
{
    const vnxi_port_host_t *host = &conn->base.port->config.host;
    bool asks = false;

    vnxi_mutex_lock(&conn->lock);
    if (conn->table != NULL) {
        asks = revoked_lock_held(conn,
                                 vnxi_region_table_exact(conn->table, mem,
                                                         desc->addr, desc->len,
                                                         desc->dev),
                                 epoch);
    }
    vnxi_mutex_unlock(&conn->lock);
    if (asks) {
        vnxi_confirm_ask(conn);
    }
    host->changed(host->context);
}

static bool
fits_lock_held(const vnxi_confirm_t *confirm, const vnxi_link_answer_t *answer)
{
    return confirm->is_open && answer->token == confirm->token &&
           answer->epoch >= confirm->least &&
           (answer->count == 0 ||
            answer->refused[answer->count - 1] < confirm->asked_count);
}

/* An answer from before a REVOKE of the region does not count: the region is
 * asked for again. */
static void
apply_lock_held(const vnxi_confirm_t *confirm,
                const vnxi_link_answer_t *answer)
{
    size_t refused = 0;

    for (size_t i = 0; i < confirm->asked_count; i++) {
        vnxi_region_t *region = confirm->asked[i];
        uint64_t *proved = &vnxi_native_region(region)->proved;
        if (refused < answer->count && answer->refused[refused] == i) {
            refused++;
            if (!confirm->again) {
                vnxi_region_settle(region, false);
            }
        } else if (answer->epoch >= *proved) {
            *proved = answer->epoch;
            vnxi_region_settle(region, true);
        }
    }
}

static bool
answered(vnxi_shm_conn_t *conn, const vnxi_link_answer_t *answer)
{
    const vnxi_port_host_t *host = &conn->base.port->config.host;
    question_t question = {0};
    vnxi_confirm_t *confirm = &conn->confirm;
    uint64_t false_epoch = 0;

    vnxi_mutex_lock(&conn->lock);
    if (!fits_lock_held(confirm, answer)) {
        vnxi_mutex_unlock(&conn->lock);
        return false;
    }
    apply_lock_held(confirm, answer);
    confirm->is_open = false;
    hear_lock_held(confirm, answer->epoch);
    if (confirm->again) {
        begin_lock_held(conn);
    } else if (conn->epoch > answer->epoch) {
        false_epoch = conn->epoch;
        conn->epoch = 0;
    }
    bool has_memory = make_question_lock_held(conn, &question);
    vnxi_mutex_unlock(&conn->lock);
    if (false_epoch != 0) {
        host->false_epoch(host->context, &conn->base, false_epoch);
    }
    send_question(conn, has_memory, &question);
    host->changed(host->context);
    return true;
}

/* Find the conn of a link; to be dropped.  NULL: it was closed. */
static vnxi_shm_conn_t *
hold(const vnxi_port_t *port, const vnxi_link_t *link)
{
    const vnxi_port_host_t *host = &port->config.host;
    return (vnxi_shm_conn_t *)host->hold(host->context, port->config.number,
                                         (uintptr_t)vnxi_link_cookie(link));
}

static void
drop(const vnxi_port_t *port, vnxi_shm_conn_t *conn)
{
    const vnxi_port_host_t *host = &port->config.host;
    host->drop(host->context, &conn->base);
}

bool
vnxi_confirm_on_answer(void *port, vnxi_link_t *link,
                       const vnxi_link_answer_t *answer)
{
    vnxi_shm_conn_t *conn = hold(port, link);
    bool fits = true;

    if (conn != NULL) {
        fits = answered(conn, answer);
        drop(port, conn);
    }
    return fits;
}

void
vnxi_confirm_on_revoked(void *port, vnxi_link_t *link, uint64_t epoch,
                        vnx_mem_t mem, const vnx_desc_t *desc)
{
    vnxi_shm_conn_t *conn = hold(port, link);

    if (conn != NULL) {
        revoked(conn, epoch, mem, desc);
        drop(port, conn);
    }
}

/* -- The end of copies ----------------------------------------------------
 */

/* The token of the last SETTLE, unless it is `answered`; then the thread
 * ends. */
static bool
next_token(vnxi_shm_conn_t *conn, uint64_t answered, uint64_t *token_p)
{
    vnxi_mutex_lock(&conn->lock);
    *token_p = conn->confirm.settle_token;
    conn->confirm.is_settling = *token_p != answered;
    bool goes_on = conn->confirm.is_settling;
    vnxi_mutex_unlock(&conn->lock);
    return goes_on;
}

/* The thread holds the conn and the engine. */
static void *
settle(void *argument)
{
    vnxi_shm_conn_t *conn = argument;
    const vnxi_port_t *port = conn->base.port;
    const vnxi_port_host_t host = port->config.host;
    uint64_t token = 0;

    while (next_token(conn, token, &token)) {
        host.settle(host.context, true);
        vnxi_link_send_settled(conn->link, token, NULL);
    }
    drop(port, conn);
    host.release(host.context);
    return NULL;
}

/* Answer by a thread.  Takes the conn. */
static void
settle_later(const vnxi_port_t *port, vnxi_shm_conn_t *conn)
{
    const vnxi_port_host_t *host = &port->config.host;

    host->retain(host->context);
    if (vnxi_thread_start_detached(settle, conn) != 0) {
        settle(conn);
    }
}

typedef enum turn {
    TURN_NOW,    /* nothing was ever asked, so no copy can be running, and
                    conn->link may not be set yet */
    TURN_MINE,   /* the caller has to answer */
    TURN_THREAD, /* a thread will */
} turn_t;

static turn_t
note_settle(vnxi_shm_conn_t *conn, uint64_t token)
{
    turn_t turn = TURN_NOW;

    vnxi_mutex_lock(&conn->lock);
    if (conn->table != NULL) {
        turn = conn->confirm.is_settling ? TURN_THREAD : TURN_MINE;
        conn->confirm.settle_token = token;
        conn->confirm.is_settling = true;
    }
    vnxi_mutex_unlock(&conn->lock);
    return turn;
}

void
vnxi_confirm_on_settle(void *port, vnxi_link_t *link, uint64_t token)
{
    const vnxi_port_host_t *host = &((vnxi_port_t *)port)->config.host;
    vnxi_shm_conn_t *conn = hold(port, link);

    if (conn == NULL) {
        return; /* it was closed: nothing uses the peer any more */
    }
    turn_t turn = note_settle(conn, token);
    if (turn == TURN_MINE && !host->settle(host->context, false)) {
        settle_later(port, conn);
        return;
    }
    if (turn != TURN_THREAD) {
        vnxi_link_send_settled(link, token, NULL);
    }
    if (turn == TURN_MINE) {
        next_token(conn, token, &token);
    }
    drop(port, conn);
}
