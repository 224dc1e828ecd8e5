/*
 * Design notes.  The map has one peer object per name: the current generation.
 * Prepared lists and transfers hold the object, not the name.  Superseding a
 * peer therefore only replaces the object in the map; holders of the old
 * object get its errors.
 *
 * Loads and removals of one name take turns.  Those of different names do not
 * wait for each other, because a load may wait some seconds for a process that
 * is stopped.  The engine is called without a lock.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/words.h"
#include "core/agent.h"

static vnxi_peer_t *
find_in_map(vnx_agent_t *agent, const void *name, size_t name_len)
{
    vnxi_mutex_lock(&agent->peers_lock);
    vnxi_peer_t *peer = vnxi_name_map_get(&agent->peers, name, name_len);
    if (peer != NULL) {
        vnxi_peer_retain(peer);
    }
    vnxi_mutex_unlock(&agent->peers_lock);
    return peer;
}

static bool
is_self(const vnx_agent_t *agent, const void *name, size_t name_len)
{
    return name_len == agent->name_len &&
           memcmp(name, agent->name, name_len) == 0;
}

/* -- Messages ------------------------------------------------------------- */

#define PEERS_SHOWN 4
#define PEERS_ASKED 16
#define INIT_AGENT "NIXL_INIT_AGENT" /* a word of prep_xfer_dlist() */

/* Take references to at most `max` peers.  Returns their number. */
static size_t
some_peers(vnx_agent_t *agent, vnxi_peer_t **list, size_t max, size_t *all_p)
{
    size_t cursor = 0, count = 0;
    vnxi_peer_t *peer;

    vnxi_mutex_lock(&agent->peers_lock);
    while (count < max &&
           (peer = vnxi_name_map_next(&agent->peers, &cursor)) != NULL) {
        list[count++] = vnxi_peer_retain(peer);
    }
    *all_p = agent->peers.count;
    vnxi_mutex_unlock(&agent->peers_lock);
    return count;
}

/* Add the names of peers that are loaded. */
static void
add_loaded(vnx_agent_t *agent, vnx_error_t *error)
{
    vnxi_peer_t *list[PEERS_SHOWN];
    vnx_error_t shown; /* for printable names */
    size_t all, count = some_peers(agent, list, PEERS_SHOWN, &all);

    vnxi_error_add(error, count > 0 ? "; loaded are" : "; no peer is loaded");
    for (size_t i = 0; i < count; i++) {
        vnxi_error_peer(&shown, list[i]->name, list[i]->name_len);
        vnxi_error_add(error, "%s '%.32s'", i > 0 ? "," : "", shown.peer);
        vnxi_peer_release(list[i]);
    }
    if (all > count) {
        vnxi_error_add(error, " and %zu more", all - count);
    }
}

static void
no_such_peer(vnx_agent_t *agent, const void *name, size_t name_len,
             const char *operation, vnx_error_t *error)
{
    static const char *const words[] = {INIT_AGENT};
    vnx_error_t shown; /* for the printable name */

    vnxi_error_peer(&shown, name, name_len);
    if (strcmp(shown.peer, INIT_AGENT) == 0) {
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                       "only prep_xfer_dlist takes this name for the local "
                       "side; here, this agent is '%s'",
                       agent->name);
    } else if (vnxi_word_meant(shown.peer, words, 1) != NULL) {
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                       "no such peer: did you mean '" INIT_AGENT "'?");
    } else {
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                       "no such peer: its metadata was not loaded "
                       "(add_remote_agent), or it was removed");
        add_loaded(agent, error);
    }
    vnxi_error_peer(error, name, name_len);
}

/* Add the first peer that has registered the memory. */
static void
add_peer_that_covers(vnx_agent_t *agent, vnx_mem_t mem, const vnx_desc_t *desc,
                     vnx_error_t *error)
{
    vnxi_peer_t *list[PEERS_ASKED];
    vnx_error_t shown; /* for the printable name */
    size_t all, count = some_peers(agent, list, PEERS_ASKED, &all);
    bool is_found = false;

    for (size_t i = 0; i < count; i++) {
        if (!is_found && agent->ops->peer_covers(list[i], mem, desc, 1)) {
            is_found = true;
            vnxi_error_peer(&shown, list[i]->name, list[i]->name_len);
            vnxi_error_add(error,
                           "; peer '%.64s' has registered memory there: is "
                           "this list for that peer?",
                           shown.peer);
        }
        vnxi_peer_release(list[i]);
    }
}

void
vnxi_peers_add_owner(vnx_agent_t *agent, vnxi_peer_t *peer, vnx_mem_t mem,
                     vnx_error_t *error)
{
    if (error == NULL || !error->has_desc ||
        error->status != VNX_ERR_NOT_FOUND) {
        return;
    }
    vnx_desc_t desc = {error->addr, error->len, error->dev};
    vnxi_peer_t *self = agent->ops->peer_self(agent->engine);
    if (peer == NULL || peer == self) {
        add_peer_that_covers(agent, mem, &desc, error);
    } else if (agent->ops->peer_covers(self, mem, &desc, 1)) {
        vnxi_error_add(error, "; this agent has registered memory there: is "
                              "this list for the local side (name '')?");
    }
}

/* -- Finding -------------------------------------------------------------- */

vnx_status_t
vnxi_peers_find(vnx_agent_t *agent, const void *name, size_t name_len,
                const char *operation, vnxi_peer_t **peer_p,
                vnx_error_t *error)
{
    /* Loading another peer has bound the agent, or is about to. */
    bool self = is_self(agent, name, name_len);
    vnx_status_t status = self ? vnxi_agent_bind(agent, operation, error)
                               : vnxi_agent_ready(agent, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_peer_t *peer =
        self ? vnxi_peer_retain(agent->ops->peer_self(agent->engine))
             : find_in_map(agent, name, name_len);
    if (peer == NULL) {
        if (error != NULL) {
            no_such_peer(agent, name, name_len, operation, error);
        }
        return VNX_ERR_NOT_FOUND;
    }
    *peer_p = peer;
    return VNX_OK;
}

/* -- Two agents of one name ------------------------------------------------
 */

#define RIVALS_MAX 64 /* remembered pairs; if full, all are forgotten */

void
vnxi_peers_forget_rivals(vnx_agent_t *agent)
{
    size_t cursor = 0;
    char *pair;

    while ((pair = vnxi_name_map_next(&agent->rivals, &cursor)) != NULL) {
        free(pair);
    }
    vnxi_name_map_fini(&agent->rivals);
    agent->rivals = (vnxi_name_map_t){0};
}

/* Return whether this is the first warning about the pair.  True if memory
 * runs out. */
static bool
remember_rivals_lock_held(vnx_agent_t *agent, const vnxi_peer_t *peer,
                          uint32_t one, uint32_t other)
{
    uint32_t pids[] = {one < other ? one : other, one < other ? other : one};
    size_t len = sizeof pids + peer->name_len;
    char *pair = malloc(len);

    if (pair == NULL) {
        return true;
    }
    memcpy(pair, pids, sizeof pids);
    memcpy(pair + sizeof pids, peer->name, peer->name_len);
    if (vnxi_name_map_get(&agent->rivals, pair, len) != NULL) {
        free(pair);
        return false;
    }
    if (agent->rivals.count >= RIVALS_MAX) {
        vnxi_peers_forget_rivals(agent);
    }
    if (!vnxi_name_map_set(&agent->rivals, pair, len, pair)) {
        free(pair);
    }
    return true;
}

/* Warn if a peer replaces another one of the same name that is still running:
 * two agents have the same name by mistake.  A restart is not reported. */
static void
warn_of_rival(vnx_agent_t *agent, vnxi_peer_t *peer, vnxi_peer_t *old)
{
    uint32_t first = agent->ops->peer_pid(old), second;
    vnx_error_t shown; /* for the printable name */
    char where[64] = "on another host or in another container";

    if (first == 0) {
        return;
    }
    second = agent->ops->peer_pid(peer);
    if (second != 0) {
        snprintf(where, sizeof where, "in process %u", (unsigned)second);
    }
    vnxi_mutex_lock(&agent->load_lock);
    bool is_new = remember_rivals_lock_held(agent, peer, first, second);
    vnxi_mutex_unlock(&agent->load_lock);
    if (!is_new) {
        return;
    }
    vnxi_error_peer(&shown, peer->name, peer->name_len);
    vnxi_log(VNX_LOG_WARNING, agent->name,
             "two live agents have the name '%s': the one %s replaces the one "
             "in process %u, which is still running; transfers in flight to "
             "that one fail",
             shown.peer, where, (unsigned)first);
}

/* -- Turns -----------------------------------------------------------------
 */

#define TURN_LOOK_NS 50000000u /* between two looks at `stop` */

static bool
has_turn_lock_held(const vnx_agent_t *agent, const void *name, size_t name_len)
{
    const vnxi_turn_t *turn = agent->turns;
    while (turn != NULL && (turn->name_len != name_len ||
                            memcmp(turn->name, name, name_len) != 0)) {
        turn = turn->next;
    }
    return turn != NULL;
}

static bool
is_stopped(const atomic_bool *stop)
{
    return stop != NULL && atomic_load_explicit(stop, memory_order_acquire);
}

/* Wait until nobody loads or removes the peer that `turn` names, then do not
 * let others do so until end_turn().  Fails if the agent is closed, or was
 * closed meanwhile. */
static vnx_status_t
take_turn(vnx_agent_t *agent, vnxi_turn_t *turn, const atomic_bool *stop,
          const char *operation, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    vnxi_mutex_lock(&agent->load_lock);
    while (has_turn_lock_held(agent, turn->name, turn->name_len) &&
           !is_stopped(stop)) {
        struct timespec look =
            vnxi_clock_timespec(vnxi_clock_deadline(TURN_LOOK_NS));
        vnxi_cond_timedwait(&agent->turn_ends, &agent->load_lock, &look);
    }
    if (is_stopped(stop)) {
        status = vnxi_error_set(error, VNX_ERR_CANCELED, operation,
                                "the call was stopped");
    } else if (!vnxi_agent_usable(agent)) {
        status = vnxi_agent_refuse(agent, operation, error);
    } else {
        turn->next = agent->turns;
        agent->turns = turn;
    }
    vnxi_mutex_unlock(&agent->load_lock);
    return status;
}

static void
end_turn(vnx_agent_t *agent, vnxi_turn_t *turn)
{
    vnxi_mutex_lock(&agent->load_lock);
    vnxi_turn_t **at = &agent->turns;
    while (*at != turn) {
        at = &(*at)->next;
    }
    *at = turn->next;
    vnxi_cond_broadcast(&agent->turn_ends);
    vnxi_mutex_unlock(&agent->load_lock);
}

/* -- Loading and removing --------------------------------------------------
 */

/* Put a new generation in the place of `old` (NULL: none).  The map takes over
 * the caller's reference on `peer`. */
static vnx_status_t
install_peer(vnx_agent_t *agent, vnxi_peer_t *peer, vnxi_peer_t *old,
             vnx_error_t *error)
{
    vnxi_counters_add_peer(agent, peer);
    vnxi_mutex_lock(&agent->peers_lock);
    peer->generation = ++agent->last_generation;
    bool is_set =
        vnxi_name_map_set(&agent->peers, peer->name, peer->name_len, peer);
    vnxi_mutex_unlock(&agent->peers_lock);
    if (!is_set) {
        agent->ops->peer_close(peer, "out of memory");
        vnxi_peer_release(peer);
        return vnxi_error_no_memory(error, "vnx_agent_load_metadata",
                                    sizeof *peer);
    }
    if (old != NULL) {
        warn_of_rival(agent, peer, old);
        agent->ops->peer_close(old,
                               "another instance of the agent has taken its "
                               "place: prepare lists and transfers again");
        vnxi_peer_release(old); /* the map's reference */
    }
    return VNX_OK;
}

/* Load the metadata of a peer whose turn it is.  The caller gets a reference
 * to the peer. */
static vnx_status_t
load_in_turn(vnx_agent_t *agent, const vnxi_peer_md_t *md,
             const atomic_bool *stop, vnxi_peer_t **peer_p, vnx_error_t *error)
{
    vnxi_peer_t *old = find_in_map(agent, md->name, md->name_len), *peer;
    vnx_status_t status = agent->ops->peer_load(agent->engine, old, md->parsed,
                                                stop, &peer, error);
    if (status == VNX_OK && peer != old) {
        status = install_peer(agent, peer, old, error);
    }
    if (status == VNX_OK) {
        vnxi_log(VNX_LOG_DEBUG, agent->name,
                 "loaded metadata of peer '%s' (generation %" PRIu64 ")",
                 peer->name, peer->generation);
        *peer_p = vnxi_peer_retain(peer);
    }
    vnxi_peer_release(old);
    return status;
}

vnx_status_t
vnxi_peer_md_parse(vnx_agent_t *agent, const void *blob, size_t len,
                   vnxi_peer_md_t *md_p, vnx_error_t *error)
{
    bool is_held = vnxi_agent_hold(agent);
    vnx_status_t status =
        vnxi_agent_ready(agent, "vnx_agent_load_metadata", error);
    if (status == VNX_OK && agent->signature_key.is_set) {
        status = vnxi_signature_check(&agent->signature_key, blob, len, error);
    }
    if (status == VNX_OK) {
        status = agent->ops->metadata_parse(
            blob, len, &md_p->parsed, &md_p->name, &md_p->name_len, error);
    }
    /* Valid metadata binds the agent before it is loaded: that may wait for a
     * process, and must not keep other calls from the engine meanwhile. */
    vnxi_agent_unhold(agent, is_held, status == VNX_OK);
    return status;
}

void
vnxi_peer_md_free(vnx_agent_t *agent, vnxi_peer_md_t *md)
{
    if (md->parsed != NULL) {
        agent->ops->metadata_free(md->parsed);
        md->parsed = NULL;
    }
}

vnx_status_t
vnxi_peer_md_load(vnx_agent_t *agent, const vnxi_peer_md_t *md,
                  const atomic_bool *stop, vnxi_peer_t **peer_p,
                  vnx_error_t *error)
{
    vnxi_turn_t turn = {.name = md->name, .name_len = md->name_len};

    if (is_self(agent, md->name, md->name_len)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM,
                              "vnx_agent_load_metadata",
                              "the metadata is this agent's own, or that of "
                              "another agent with the name '%s': each needs "
                              "a name of its own",
                              agent->name);
    }
    vnx_status_t status =
        take_turn(agent, &turn, stop, "vnx_agent_load_metadata", error);
    if (status == VNX_OK) {
        status = load_in_turn(agent, md, stop, peer_p, error);
        end_turn(agent, &turn);
    }
    return status;
}

vnx_status_t
vnxi_peers_load(vnx_agent_t *agent, const void *blob, size_t len,
                vnxi_peer_t **peer_p, vnx_error_t *error)
{
    vnxi_peer_md_t md = {.parsed = NULL};

    vnx_status_t status = vnxi_peer_md_parse(agent, blob, len, &md, error);
    if (status == VNX_OK) {
        status = vnxi_peer_md_load(agent, &md, NULL, peer_p, error);
        vnxi_peer_md_free(agent, &md);
    }
    return status;
}

vnx_status_t
vnx_agent_load_metadata(vnx_agent_t *agent, const void *blob, size_t len,
                        vnx_bytes_t *name_p, vnx_error_t *error)
{
    vnxi_peer_t *peer = NULL;

    vnx_status_t status = vnxi_peers_load(agent, blob, len, &peer, error);
    if (status != VNX_OK) {
        return status;
    }
    vnx_bytes_t copy = {malloc(peer->name_len + 1), peer->name_len};
    if (copy.data != NULL) {
        memcpy(copy.data, peer->name, peer->name_len + 1);
        *name_p = copy;
    } else {
        status = vnxi_error_no_memory(error, "vnx_agent_load_metadata",
                                      peer->name_len);
    }
    vnxi_peer_release(peer);
    return status;
}

/* Remove a peer from the map and close it; NULL name: any peer.  False: not
 * found. */
static bool
remove_in_turn(vnx_agent_t *agent, const void *name, size_t name_len,
               const char *cause)
{
    size_t cursor = 0;

    vnxi_mutex_lock(&agent->peers_lock);
    vnxi_peer_t *peer = name != NULL
                            ? vnxi_name_map_get(&agent->peers, name, name_len)
                            : vnxi_name_map_next(&agent->peers, &cursor);
    if (peer != NULL) {
        vnxi_name_map_remove(&agent->peers, peer->name, peer->name_len);
    }
    vnxi_mutex_unlock(&agent->peers_lock);
    if (peer == NULL) {
        return false;
    }
    vnxi_log(VNX_LOG_DEBUG, agent->name, "removed peer '%s': %s", peer->name,
             cause);
    agent->ops->peer_close(peer, cause);
    vnxi_peer_release(peer);
    return true;
}

vnx_status_t
vnxi_peers_remove(vnx_agent_t *agent, const void *name, size_t name_len,
                  const atomic_bool *stop, vnx_error_t *error)
{
    vnxi_turn_t turn = {.name = name, .name_len = name_len};

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, "vnx_agent_remove_peer", error);
    }
    if (name_len == 0) {
        return VNX_OK; /* agents cannot have this name, and NULL would mean
                          any */
    }
    vnx_status_t status =
        take_turn(agent, &turn, stop, "vnx_agent_remove_peer", error);
    if (status == VNX_OK) {
        remove_in_turn(agent, name, name_len,
                       "the peer was removed (remove_remote_agent)");
        end_turn(agent, &turn);
    }
    return status;
}

vnx_status_t
vnx_agent_remove_peer(vnx_agent_t *agent, const void *name, size_t name_len,
                      vnx_error_t *error)
{
    return vnxi_peers_remove(agent, name, name_len, NULL, error);
}

/* The agent is closed, so no turn begins any more. */
void
vnxi_peers_close(vnx_agent_t *agent)
{
    vnxi_mutex_lock(&agent->load_lock);
    while (agent->turns != NULL) {
        vnxi_cond_wait(&agent->turn_ends, &agent->load_lock);
    }
    vnxi_mutex_unlock(&agent->load_lock);
    while (remove_in_turn(agent, NULL, 0, "the agent was closed")) {
    }
}

/* A dead peer stays in the map until its new metadata is loaded or it is
 * removed, so that calls with its name report the cause and not "no such
 * peer". */
void
vnxi_peers_lost(void *context, vnxi_peer_t *peer, const vnx_error_t *cause)
{
    vnx_agent_t *agent = context;
    vnxi_count(&agent->counters.peers_lost, 1);
    vnxi_log(VNX_LOG_INFO, agent->name, "peer '%s' is gone: %s", peer->name,
             cause->cause);
}

bool
vnx_agent_check_peer(vnx_agent_t *agent, const void *name, size_t name_len,
                     vnx_mem_t mem, const vnx_desc_t *descs, size_t count)
{
    vnxi_peer_t *peer = NULL;

    if (vnxi_peers_find(agent, name, name_len, "vnx_agent_check_peer", &peer,
                        NULL) != VNX_OK) {
        return false;
    }
    bool covers = agent->ops->peer_covers(peer, mem, descs, count);
    vnxi_peer_release(peer);
    return covers;
}

vnx_status_t
vnx_agent_connect_peer(vnx_agent_t *agent, const void *name, size_t name_len,
                       vnx_error_t *error)
{
    vnxi_peer_t *peer = NULL;
    vnx_status_t status = vnxi_peers_find(
        agent, name, name_len, "vnx_agent_connect_peer", &peer, error);
    if (status != VNX_OK) {
        return status;
    }
    status = agent->ops->peer_connect(peer, error);
    vnxi_peer_release(peer);
    return status;
}

vnx_status_t
vnx_agent_send_notif(vnx_agent_t *agent, const void *peer_name,
                     size_t peer_len, const void *message, size_t message_len,
                     vnx_error_t *error)
{
    vnxi_peer_t *peer;
    vnx_status_t status = vnxi_peers_find(
        agent, peer_name, peer_len, "vnx_agent_send_notif", &peer, error);
    if (status != VNX_OK) {
        return status;
    }
    status = agent->ops->notif_send(peer, message, message_len, error);
    if (status == VNX_OK) {
        vnxi_count(&peer->counters.at[VNXI_NOTIFS_SENT], 1);
    }
    vnxi_peer_release(peer);
    return status;
}

/* Called by threads of the engine, which may hold its locks. */
void
vnxi_peers_count_notif(vnx_agent_t *agent, const void *sender,
                       size_t sender_len)
{
    if (is_self(agent, sender, sender_len)) {
        if (atomic_load_explicit(&agent->is_bound, memory_order_acquire)) {
            vnxi_count(&agent->ops->peer_self(agent->engine)
                            ->counters.at[VNXI_NOTIFS_RECEIVED],
                       1);
        }
        return;
    }
    vnxi_mutex_lock(&agent->peers_lock);
    vnxi_peer_t *peer = vnxi_name_map_get(&agent->peers, sender, sender_len);
    if (peer != NULL) {
        vnxi_count(&peer->counters.at[VNXI_NOTIFS_RECEIVED], 1);
    }
    vnxi_mutex_unlock(&agent->peers_lock);
}

/* -- Description -----------------------------------------------------------
 */

/* Finish a JSON object of these members. */
static vnx_status_t
take_object(vnxi_writer_t *members, const char *operation, vnx_bytes_t *json_p,
            vnx_error_t *error)
{
    vnxi_writer_t out = {0};

    vnxi_json_object(&out, members);
    return vnxi_writer_take(&out, &json_p->data, &json_p->len)
               ? VNX_OK
               : vnxi_error_no_memory(error, operation, out.len);
}

static size_t
count_peers(vnx_agent_t *agent)
{
    vnxi_mutex_lock(&agent->peers_lock);
    size_t count = agent->peers.count;
    vnxi_mutex_unlock(&agent->peers_lock);
    return count;
}

/* Before the first backend there is not yet an engine to add members. */
static void
describe_agent(vnx_agent_t *agent, vnxi_writer_t *out)
{
    bool is_held = vnxi_agent_hold(agent);
    bool has_engine = atomic_load(&agent->chosen) != NULL;

    vnxi_json_key(out, "engine");
    if (has_engine) {
        vnxi_json_string(out, agent->ops->name);
        vnxi_json_member(out, "engine_why", agent->choice.why);
    } else {
        vnxi_json_text(out, "null");
    }
    vnxi_json_number(out, "peers", count_peers(agent));
    vnxi_json_key(out, "metadata_signed");
    vnxi_json_text(out, agent->signature_key.is_set ? "true" : "false");
    if (has_engine) {
        agent->ops->describe(agent->engine, NULL, out);
    }
    vnxi_agent_unhold(agent, is_held, false);
}

/* The members that peers() and describe() have in common. */
static void
write_peer(vnx_agent_t *agent, vnxi_peer_t *peer, vnxi_writer_t *out)
{
    vnxi_peer_status_t status;

    agent->ops->peer_status(peer, &status);
    vnxi_json_number(out, "generation", peer->generation);
    vnxi_json_member(out, "state", status.state);
    if (status.cause[0] != '\0') {
        vnxi_json_member(out, "cause", status.cause);
    }
    vnxi_json_member(out, "path", status.path);
    vnxi_json_number(out, "pid", status.pid);
    vnxi_counters_write(peer, out);
}

static uint64_t
bytes_moved(const vnxi_peer_t *peer)
{
    const atomic_uint_fast64_t *bytes = &peer->counters.at[VNXI_BYTES];
    return atomic_load_explicit(&bytes[VNX_OP_READ], memory_order_relaxed) +
           atomic_load_explicit(&bytes[VNX_OP_WRITE], memory_order_relaxed);
}

vnx_status_t
vnx_agent_describe(vnx_agent_t *agent, const void *name, size_t name_len,
                   vnx_bytes_t *json_p, vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_describe";
    vnxi_writer_t members = {0};
    vnxi_peer_t *peer = NULL;

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, operation, error);
    }
    if (name_len == 0) {
        describe_agent(agent, &members);
        return take_object(&members, operation, json_p, error);
    }
    vnx_status_t status =
        vnxi_peers_find(agent, name, name_len, operation, &peer, error);
    if (status != VNX_OK) {
        return status;
    }
    write_peer(agent, peer, &members);
    vnxi_json_number(&members, "bytes", bytes_moved(peer));
    agent->ops->describe(agent->engine, peer, &members);
    vnxi_peer_release(peer);
    return take_object(&members, operation, json_p, error);
}

/* Take references to all peers.  NULL: no memory.  Owned: free(). */
static vnxi_peer_t **
all_peers(vnx_agent_t *agent, size_t *count_p)
{
    size_t room = count_peers(agent), all;

    for (;;) {
        vnxi_peer_t **list = malloc((room + 1) * sizeof(vnxi_peer_t *));
        if (list == NULL) {
            return NULL;
        }
        size_t count = some_peers(agent, list, room, &all);
        if (count == all) {
            *count_p = count;
            return list;
        }
        for (size_t i = 0; i < count; i++) { /* more were loaded meanwhile */
            vnxi_peer_release(list[i]);
        }
        free(list);
        room = all;
    }
}

vnx_status_t
vnx_agent_peers(vnx_agent_t *agent, vnx_bytes_t *json_p, vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_peers";
    vnxi_writer_t peers = {0};
    size_t count;

    if (!vnxi_agent_usable(agent)) {
        return vnxi_agent_refuse(agent, operation, error);
    }
    vnxi_peer_t **list = all_peers(agent, &count);
    if (list == NULL) {
        return vnxi_error_no_memory(error, operation, 0);
    }
    for (size_t i = 0; i < count; i++) {
        vnxi_writer_t members = {0};
        write_peer(agent, list[i], &members);
        vnxi_json_bytes_key(&peers, list[i]->name, list[i]->name_len);
        vnxi_json_object(&peers, &members);
        vnxi_peer_release(list[i]);
    }
    free(list);
    return take_object(&peers, operation, json_p, error);
}
