/*
 * A library with the interface of libnixl_capi.so, for tests on machines
 * without NIXL and under sanitizers.  Agents of one process know each other
 * by name; bytes are moved by memcpy(); tests change its behaviour through
 * `fake_nixl` (fake_nixl.h).  It keeps the real library's pitfalls: failing
 * calls write their outputs, notifications are sent only when the state is
 * checked, handles must be released.  It shares no code with the engine that
 * it tests; nixl_contract_test.c compares it with the real library.
 */
#include "fake_nixl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/nixl/capi.h"

#define EXPORT __attribute__((visibility("default")))
#define GARBAGE ((void *)(uintptr_t)0xdeadbeef)
#define MANY 64
#define HOLD_PAUSES 300000 /* 30 s or longer */

typedef struct blob {
    char *data;
    size_t len;
} blob_t;

typedef struct row {
    uint64_t addr, len, dev;
} row_t;

struct nixl_capi_xfer_dlist_s {
    int mem;
    row_t *rows;
    size_t count;
};

struct nixl_capi_reg_dlist_s {
    struct nixl_capi_xfer_dlist_s list;
};

struct nixl_capi_backend_s {
    char name[32];
};

struct nixl_capi_opt_args_s {
    nixl_capi_backend_t backend;
    blob_t notif;
    bool has_notif;
};

struct nixl_capi_params_s {
    char key[MANY][32], value[MANY][32];
    size_t count;
};

struct nixl_capi_param_iter_s {
    nixl_capi_params_t params;
    size_t at;
};

struct nixl_capi_mem_list_s {
    int mems[4];
    size_t count;
};

struct nixl_capi_string_list_s {
    const char *names[4];
    size_t count;
};

typedef struct notif {
    char sender[64];
    blob_t message;
    struct notif *next;
} notif_t;

struct nixl_capi_notif_map_s {
    notif_t *first;
};

struct nixl_capi_query_resp_list_s {
    bool has[MANY];
    size_t count;
};

typedef struct region {
    row_t row;
    int mem;
    char backend[32];
    struct region *next;
} region_t;

/* What an agent knows of another one, from its metadata. */
typedef struct peer {
    char name[64];
    region_t *regions;
    struct peer *next;
} peer_t;

struct nixl_capi_agent_s {
    uint64_t instance; /* how peers connect to it */
    char name[64];
    char backends[4][32];
    size_t backend_count;
    region_t *regions;
    peer_t *peers;
    notif_t *inbox;
    nixl_capi_agent_t next;
};

struct nixl_capi_xfer_dlist_handle_s {
    char peer[64]; /* "": ours */
    struct nixl_capi_xfer_dlist_s list;
    char backend[32];
};

struct nixl_capi_xfer_req_s {
    nixl_capi_agent_t agent;
    char peer[64];
    int op;
    struct nixl_capi_xfer_dlist_s local, remote;
    blob_t notif;
    bool has_notif, is_posted, was_posted;
    atomic_bool is_released;
    int polls_left;
};

EXPORT fake_nixl_t fake_nixl;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nixl_capi_agent_t agents; /* protected by lock, and all they have */
static uint64_t last_instance;   /* protected by lock */

/* Precedes every handle.  Handles that an engine leaves behind thus stay
 * reachable, and the leak checker does not report them. */
typedef struct link {
    struct link *next, *previous;
} link_t;

static pthread_mutex_t links_lock = PTHREAD_MUTEX_INITIALIZER;
static link_t links = {&links, &links}; /* protected by links_lock */

static void *
make(size_t size)
{
    link_t *link = calloc(1, sizeof *link + size);

    pthread_mutex_lock(&links_lock);
    *link = (link_t){links.next, &links};
    link->next->previous = links.next = link;
    pthread_mutex_unlock(&links_lock);
    atomic_fetch_add(&fake_nixl.handles, 1);
    return link + 1;
}

static int
unmake(void *handle)
{
    link_t *link = (link_t *)handle - 1;

    pthread_mutex_lock(&links_lock);
    link->next->previous = link->previous;
    link->previous->next = link->next;
    pthread_mutex_unlock(&links_lock);
    atomic_fetch_sub(&fake_nixl.handles, 1);
    free(link);
    return 0;
}

static void
pause_shortly(void)
{
    const struct timespec pause = {.tv_nsec = 100000};
    nanosleep(&pause, NULL);
}

/* The start of a call that shares the agent's lock with others. */
static void
wait_for_others(void)
{
    if (!fake_nixl.holds) {
        return;
    }
    atomic_fetch_add(&fake_nixl.waiting, 1);
    for (int i = 0; fake_nixl.holds && i < HOLD_PAUSES; i++) {
        pause_shortly();
    }
    atomic_fetch_add(&fake_nixl.gave_up, fake_nixl.holds);
    atomic_fetch_sub(&fake_nixl.waiting, 1);
}

/* -- For Python -------------------------------------------------------------
 */

EXPORT void
fake_nixl_hold(void)
{
    fake_nixl.holds = true;
}

/* Posts end only after a call with 0. */
EXPORT void
fake_nixl_hang(int hangs)
{
    fake_nixl.hangs = hangs != 0;
}

EXPORT void
fake_nixl_await_call(void)
{
    while (fake_nixl.waiting == 0 && fake_nixl.gave_up == 0) {
        pause_shortly();
    }
}

/* Returns how many calls gave up. */
EXPORT int
fake_nixl_let_go(void)
{
    fake_nixl.holds = false;
    return fake_nixl.gave_up;
}

/* -- Copies -----------------------------------------------------------------
 */

static blob_t
copy_blob(const void *data, size_t len)
{
    blob_t blob = {malloc(len + 1), len};
    if (len > 0) {
        memcpy(blob.data, data, len);
    }
    return blob;
}

static void
copy_rows(nixl_capi_xfer_dlist_t target, const nixl_capi_xfer_dlist_t source)
{
    *target = *source;
    target->rows = malloc((source->count + 1) * sizeof(row_t));
    if (source->count > 0) {
        memcpy(target->rows, source->rows, source->count * sizeof(row_t));
    }
}

static void
add_row(nixl_capi_xfer_dlist_t list, uint64_t addr, uint64_t len, uint64_t dev)
{
    if ((list->count & (list->count - 1)) == 0) { /* room doubles */
        list->rows =
            realloc(list->rows, (2 * list->count + 1) * sizeof(row_t));
    }
    list->rows[list->count++] = (row_t){addr, len, dev};
}

/* -- Agents -----------------------------------------------------------------
 */

static nixl_capi_agent_t
find_agent_lock_held(const char *name)
{
    nixl_capi_agent_t agent = agents;
    while (agent != NULL && strcmp(agent->name, name) != 0) {
        agent = agent->next;
    }
    return agent;
}

EXPORT int
nixl_capi_create_configured_agent(const char *name,
                                  const nixl_capi_agent_config_t *config,
                                  nixl_capi_agent_t *agent_p)
{
    fake_nixl.progress_thread = config->enable_prog_thread;
    fake_nixl.progress_delay_us = config->pthr_delay_us;
    nixl_capi_agent_t agent = make(sizeof *agent);
    strncpy(agent->name, name, sizeof agent->name - 1);
    pthread_mutex_lock(&lock);
    agent->instance = ++last_instance;
    agent->next = agents;
    agents = agent;
    pthread_mutex_unlock(&lock);
    *agent_p = agent;
    return 0;
}

/* Returns how many there were. */
static int
free_regions(region_t *regions)
{
    int count = 0;

    while (regions != NULL) {
        region_t *next = regions->next;
        free(regions);
        regions = next;
        count++;
    }
    return count;
}

static peer_t **
find_peer_lock_held(nixl_capi_agent_t agent, const char *name)
{
    peer_t **at = &agent->peers;
    while (*at != NULL && strcmp((*at)->name, name) != 0) {
        at = &(*at)->next;
    }
    return at;
}

static void
forget_peer_lock_held(peer_t **at)
{
    peer_t *peer = *at;
    *at = peer->next;
    free_regions(peer->regions);
    free(peer);
}

/* The agent itself is known, too. */
static bool
knows(nixl_capi_agent_t agent, const char *name)
{
    pthread_mutex_lock(&lock);
    bool known = strcmp(agent->name, name) == 0 ||
                 *find_peer_lock_held(agent, name) != NULL;
    pthread_mutex_unlock(&lock);
    return known;
}

EXPORT int
nixl_capi_destroy_agent(nixl_capi_agent_t agent)
{
    pthread_mutex_lock(&lock);
    nixl_capi_agent_t *at = &agents;
    while (*at != agent) {
        at = &(*at)->next;
    }
    *at = agent->next;
    while (agent->peers != NULL) {
        forget_peer_lock_held(&agent->peers);
    }
    pthread_mutex_unlock(&lock);
    fake_nixl.left_registered += free_regions(agent->regions);
    while (agent->inbox != NULL) {
        notif_t *next = agent->inbox->next;
        free(agent->inbox->message.data);
        free(agent->inbox);
        agent->inbox = next;
    }
    return unmake(agent);
}

static bool
has_backend(const nixl_capi_agent_t agent, const char *name)
{
    for (size_t i = 0; i < agent->backend_count; i++) {
        if (strcmp(agent->backends[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* -- Metadata ---------------------------------------------------------------
 */

/* A sequence of fields, each of them: tag, u64 length, value, '|'. */
#define PREFIX "nixlSerDes|"

static void
put(blob_t *out, const void *bytes, size_t len)
{
    out->data = realloc(out->data, out->len + len);
    memcpy(out->data + out->len, bytes, len);
    out->len += len;
}

static void
put_field(blob_t *out, const char *tag, const void *value, uint64_t len)
{
    put(out, tag, strlen(tag));
    put(out, &len, sizeof len);
    put(out, value, len);
    put(out, "|", 1);
}

static void
put_text(blob_t *out, const char *tag, const char *text)
{
    put_field(out, tag, text, strlen(text));
}

static void
put_number(blob_t *out, const char *tag, uint64_t number)
{
    put_field(out, tag, &number, sizeof number);
}

/* The UCX backend publishes DRAM. */
static bool
is_published(const region_t *region)
{
    return strcmp(region->backend, "UCX") == 0 && region->mem == 0;
}

static int
compare_published(const void *a, const void *b)
{
    const row_t *left = a, *right = b;
    return left->addr < right->addr ? -1 : left->addr > right->addr;
}

static void
put_regions_lock_held(blob_t *out, const nixl_capi_agent_t agent)
{
    const int32_t mem = 0;
    row_t *rows = NULL;
    size_t count = 0;

    for (const region_t *at = agent->regions; at != NULL; at = at->next) {
        if (is_published(at)) {
            rows = realloc(rows, (count + 1) * sizeof *rows);
            rows[count++] = at->row;
        }
    }
    put_number(out, "nixlSecElms", count > 0);
    if (count == 0) {
        return;
    }
    qsort(rows, count, sizeof *rows, compare_published);
    put_text(out, "bknd", "UCX");
    put_text(out, "nixlDList", "nixlSDList");
    put_field(out, "t", &mem, sizeof mem);
    put_number(out, "n", count);
    for (size_t i = 0; i < count; i++) {
        uint64_t region[] = {rows[i].addr, rows[i].len, rows[i].dev,
                             fake_nixl.key};
        put_field(out, "", region, sizeof region);
    }
    free(rows);
}

EXPORT int
nixl_capi_get_local_md(nixl_capi_agent_t agent, void **data_p, size_t *len_p)
{
    blob_t out = {NULL, 0};

    if (!has_backend(agent, "UCX")) {
        return -1; /* none of its backends reaches other agents */
    }
    put(&out, PREFIX, strlen(PREFIX));
    put_text(&out, "Agent", agent->name);
    put_number(&out, "Conns", 1);
    put_text(&out, "t", "UCX");
    put_number(&out, "c", agent->instance);
    put_text(&out, "", "MemSection");
    pthread_mutex_lock(&lock);
    put_regions_lock_held(&out, agent);
    pthread_mutex_unlock(&lock);
    *data_p = out.data;
    *len_p = out.len;
    return 0;
}

/* The value of the next field, which must have this tag; else `bad`. */
typedef struct md_reader {
    const char *at;
    size_t left;
    bool bad;
} md_reader_t;

static blob_t
get_field(md_reader_t *reader, const char *tag)
{
    size_t tag_len = strlen(tag);
    uint64_t len = 0;

    if (reader->bad || reader->left < tag_len + sizeof len + 1 ||
        memcmp(reader->at, tag, tag_len) != 0) {
        reader->bad = true;
        return (blob_t){NULL, 0};
    }
    memcpy(&len, reader->at + tag_len, sizeof len);
    size_t before = tag_len + sizeof len;
    if (len > reader->left - before - 1 || reader->at[before + len] != '|') {
        reader->bad = true;
        return (blob_t){NULL, 0};
    }
    blob_t value = {(char *)reader->at + before, len};
    reader->at += before + len + 1;
    reader->left -= before + len + 1;
    return value;
}

static uint64_t
get_number(md_reader_t *reader, const char *tag)
{
    blob_t value = get_field(reader, tag);
    uint64_t number = 0;
    memcpy(&number, value.data != NULL ? value.data : (char *)&number,
           value.len < sizeof number ? value.len : sizeof number);
    return number;
}

static void
get_section(md_reader_t *reader, peer_t *peer)
{
    blob_t backend = get_field(reader, "bknd");
    get_field(reader, "nixlDList");
    int mem = (int)get_number(reader, "t");
    uint64_t count = get_number(reader, "n");

    for (uint64_t i = 0; i < count && !reader->bad; i++) {
        blob_t value = get_field(reader, "");
        region_t *region = calloc(1, sizeof *region);
        if (value.len < sizeof region->row || backend.len > 31) {
            reader->bad = true;
            free(region);
            return;
        }
        memcpy(&region->row, value.data, sizeof region->row);
        memcpy(region->backend, backend.data, backend.len);
        region->mem = mem;
        region->next = peer->regions;
        peer->regions = region;
    }
}

/* NULL: it is not metadata. */
static peer_t *
read_peer(const void *data, size_t len)
{
    const size_t prefix = strlen(PREFIX);
    peer_t *peer = calloc(1, sizeof *peer);
    md_reader_t reader = {data, len, false};

    reader.bad = len < prefix || memcmp(data, PREFIX, prefix) != 0;
    reader.at += reader.bad ? 0 : prefix;
    reader.left -= reader.bad ? 0 : prefix;
    blob_t name = get_field(&reader, "Agent");
    reader.bad |= name.len == 0 || name.len >= sizeof peer->name;
    if (!reader.bad) {
        memcpy(peer->name, name.data, name.len);
    }
    for (uint64_t n = get_number(&reader, "Conns"); n > 0 && !reader.bad;
         n--) {
        get_field(&reader, "t");
        get_field(&reader, "c");
    }
    get_field(&reader, "");
    for (uint64_t n = get_number(&reader, "nixlSecElms"); n > 0 && !reader.bad;
         n--) {
        get_section(&reader, peer);
    }
    if (reader.bad) {
        forget_peer_lock_held(&peer);
    }
    return peer;
}

/* Regions are added to those that are known. */
static void
add_peer_lock_held(nixl_capi_agent_t agent, peer_t *peer)
{
    peer_t **known = find_peer_lock_held(agent, peer->name);

    if (*known != NULL) {
        region_t **end = &peer->regions;
        while (*end != NULL) {
            end = &(*end)->next;
        }
        *end = (*known)->regions;
        (*known)->regions = NULL;
        forget_peer_lock_held(known);
    }
    peer->next = agent->peers;
    agent->peers = peer;
}

EXPORT int
nixl_capi_load_remote_md(nixl_capi_agent_t agent, const void *data, size_t len,
                         char **name_p)
{
    *name_p = GARBAGE;
    if (fake_nixl.fail_load != 0) {
        return fake_nixl.fail_load;
    }
    peer_t *peer = read_peer(data, len);
    if (peer == NULL) {
        return -2;
    }
    if (strcmp(peer->name, agent->name) == 0) {
        forget_peer_lock_held(&peer);
        return -1;
    }
    *name_p = strdup(peer->name);
    pthread_mutex_lock(&lock);
    fake_nixl.loads++;
    add_peer_lock_held(agent, peer);
    pthread_mutex_unlock(&lock);
    return 0;
}

EXPORT int
nixl_capi_invalidate_remote_md(nixl_capi_agent_t agent, const char *name)
{
    pthread_mutex_lock(&lock);
    peer_t **peer = find_peer_lock_held(agent, name);
    bool known = *peer != NULL;
    if (known) {
        forget_peer_lock_held(peer);
    }
    pthread_mutex_unlock(&lock);
    return known ? 0 : -6;
}

EXPORT int
nixl_capi_check_remote_md(nixl_capi_agent_t agent, const char *name,
                          nixl_capi_xfer_dlist_t descs)
{
    (void)descs;
    return knows(agent, name) && !fake_nixl.drops_peers ? 0 : -6;
}

EXPORT int
nixl_capi_agent_make_connection(nixl_capi_agent_t agent, const char *name,
                                nixl_capi_opt_args_t options)
{
    (void)options;
    return nixl_capi_check_remote_md(agent, name, NULL);
}

/* -- Plugins and backends ---------------------------------------------------
 */

EXPORT int
nixl_capi_get_available_plugins(nixl_capi_agent_t agent,
                                nixl_capi_string_list_t *names_p)
{
    (void)agent;
    *names_p = make(sizeof **names_p);
    **names_p =
        (struct nixl_capi_string_list_s){{"UCX", "POSIX", "BROKEN"}, 3};
    return 0;
}

EXPORT int
nixl_capi_destroy_string_list(nixl_capi_string_list_t names)
{
    return unmake(names);
}

EXPORT int
nixl_capi_string_list_size(nixl_capi_string_list_t names, size_t *size_p)
{
    *size_p = names->count;
    return 0;
}

EXPORT int
nixl_capi_string_list_get(nixl_capi_string_list_t names, size_t i,
                          const char **name_p)
{
    if (i >= names->count) {
        return -1;
    }
    *name_p = names->names[i];
    return 0;
}

static int
describe_plugin(const char *plugin, nixl_capi_mem_list_t *mems_p,
                nixl_capi_params_t *params_p)
{
    *mems_p = GARBAGE;
    *params_p = GARBAGE;
    bool is_ucx = strcmp(plugin, "UCX") == 0;
    if (!is_ucx && strcmp(plugin, "POSIX") != 0) {
        return -2;
    }
    *mems_p = make(sizeof **mems_p);
    *params_p = make(sizeof **params_p);
    **mems_p = (struct nixl_capi_mem_list_s){{0, is_ucx ? 1 : 4}, 2};
    if (is_ucx) {
        (*params_p)->count = 2;
        strcpy((*params_p)->key[0], "num_workers");
        strcpy((*params_p)->value[0], "1");
        strcpy((*params_p)->key[1], "devices");
        strcpy((*params_p)->value[1], "");
    }
    return 0;
}

EXPORT int
nixl_capi_get_plugin_params(nixl_capi_agent_t agent, const char *plugin,
                            nixl_capi_mem_list_t *mems_p,
                            nixl_capi_params_t *params_p)
{
    (void)agent;
    return describe_plugin(plugin, mems_p, params_p);
}

EXPORT int
nixl_capi_get_backend_params(nixl_capi_agent_t agent,
                             nixl_capi_backend_t backend,
                             nixl_capi_mem_list_t *mems_p,
                             nixl_capi_params_t *params_p)
{
    (void)agent;
    return describe_plugin(backend->name, mems_p, params_p);
}

EXPORT int
nixl_capi_destroy_mem_list(nixl_capi_mem_list_t mems)
{
    return unmake(mems);
}

EXPORT int
nixl_capi_mem_list_size(nixl_capi_mem_list_t mems, size_t *size_p)
{
    *size_p = mems->count;
    return 0;
}

EXPORT int
nixl_capi_mem_list_get(nixl_capi_mem_list_t mems, size_t i,
                       nixl_capi_mem_type_t *mem_p)
{
    if (i >= mems->count) {
        return -1;
    }
    *mem_p = (nixl_capi_mem_type_t)mems->mems[i];
    return 0;
}

EXPORT int
nixl_capi_create_params(nixl_capi_params_t *params_p)
{
    *params_p = make(sizeof **params_p);
    return 0;
}

EXPORT int
nixl_capi_destroy_params(nixl_capi_params_t params)
{
    return unmake(params);
}

EXPORT int
nixl_capi_params_add(nixl_capi_params_t params, const char *key,
                     const char *value)
{
    size_t i = 0;
    while (i < params->count && strcmp(params->key[i], key) != 0) {
        i++;
    }
    params->count += i == params->count;
    strcpy(params->key[i], key);
    strcpy(params->value[i], value);
    return 0;
}

EXPORT int
nixl_capi_params_is_empty(nixl_capi_params_t params, bool *is_empty_p)
{
    *is_empty_p = params->count == 0;
    return 0;
}

EXPORT int
nixl_capi_params_create_iterator(nixl_capi_params_t params,
                                 nixl_capi_param_iter_t *iter_p)
{
    *iter_p = make(sizeof **iter_p);
    (*iter_p)->params = params;
    return 0;
}

EXPORT int
nixl_capi_params_iterator_next(nixl_capi_param_iter_t iter, const char **key_p,
                               const char **value_p, bool *has_next_p)
{
    if (iter->at < iter->params->count) {
        *key_p = iter->params->key[iter->at];
        *value_p = iter->params->value[iter->at];
        iter->at++;
    }
    *has_next_p = iter->at < iter->params->count;
    return 0;
}

EXPORT int
nixl_capi_params_destroy_iterator(nixl_capi_param_iter_t iter)
{
    return unmake(iter);
}

EXPORT int
nixl_capi_create_backend(nixl_capi_agent_t agent, const char *plugin,
                         nixl_capi_params_t params,
                         nixl_capi_backend_t *backend_p)
{
    *backend_p = GARBAGE;
    if (has_backend(agent, plugin) ||
        (strcmp(plugin, "UCX") != 0 && strcmp(plugin, "POSIX") != 0)) {
        return -2;
    }
    strcpy(agent->backends[agent->backend_count++], plugin);
    fake_nixl.params_given = params->count;
    *backend_p = make(sizeof **backend_p);
    strcpy((*backend_p)->name, plugin);
    return 0;
}

EXPORT int
nixl_capi_destroy_backend(nixl_capi_backend_t backend)
{
    return unmake(backend);
}

/* -- Options ----------------------------------------------------------------
 */

EXPORT int
nixl_capi_create_opt_args(nixl_capi_opt_args_t *options_p)
{
    *options_p = make(sizeof **options_p);
    return 0;
}

EXPORT int
nixl_capi_destroy_opt_args(nixl_capi_opt_args_t options)
{
    free(options->notif.data);
    return unmake(options);
}

EXPORT int
nixl_capi_opt_args_add_backend(nixl_capi_opt_args_t options,
                               nixl_capi_backend_t backend)
{
    options->backend = backend;
    return 0;
}

EXPORT int
nixl_capi_opt_args_set_notif_msg(nixl_capi_opt_args_t options,
                                 const void *data, size_t len)
{
    free(options->notif.data);
    options->notif = copy_blob(data, len);
    return 0;
}

EXPORT int
nixl_capi_opt_args_set_has_notif(nixl_capi_opt_args_t options, bool has_notif)
{
    options->has_notif = has_notif;
    return 0;
}

/* -- Lists ------------------------------------------------------------------
 */

EXPORT int
nixl_capi_create_reg_dlist(nixl_capi_mem_type_t mem,
                           nixl_capi_reg_dlist_t *list_p)
{
    *list_p = make(sizeof **list_p);
    (*list_p)->list.mem = (int)mem;
    return 0;
}

EXPORT int
nixl_capi_destroy_reg_dlist(nixl_capi_reg_dlist_t list)
{
    free(list->list.rows);
    return unmake(list);
}

EXPORT int
nixl_capi_reg_dlist_add_desc(nixl_capi_reg_dlist_t list, uintptr_t addr,
                             size_t len, uint64_t dev, const void *meta,
                             size_t meta_len)
{
    (void)meta;
    (void)meta_len;
    add_row(&list->list, addr, len, dev);
    return 0;
}

EXPORT int
nixl_capi_create_xfer_dlist(nixl_capi_mem_type_t mem,
                            nixl_capi_xfer_dlist_t *list_p)
{
    *list_p = make(sizeof **list_p);
    (*list_p)->mem = (int)mem;
    return 0;
}

EXPORT int
nixl_capi_destroy_xfer_dlist(nixl_capi_xfer_dlist_t list)
{
    free(list->rows);
    return unmake(list);
}

EXPORT int
nixl_capi_xfer_dlist_clear(nixl_capi_xfer_dlist_t list)
{
    list->count = 0;
    return 0;
}

EXPORT int
nixl_capi_xfer_dlist_add_desc(nixl_capi_xfer_dlist_t list, uintptr_t addr,
                              size_t len, uint64_t dev)
{
    add_row(list, addr, len, dev);
    return 0;
}

/* -- Memory -----------------------------------------------------------------
 */

EXPORT int
nixl_capi_register_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                       nixl_capi_opt_args_t options)
{
    if (strcmp(options->backend->name, fake_nixl.refuses) == 0 ||
        list->list.count == 0) {
        return -2;
    }
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < list->list.count; i++) {
        region_t *region = calloc(1, sizeof *region);
        *region = (region_t){.row = list->list.rows[i],
                             .mem = list->list.mem,
                             .next = agent->regions};
        strcpy(region->backend, options->backend->name);
        agent->regions = region;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

static bool
take_region_lock_held(nixl_capi_agent_t agent, int mem, const row_t *row,
                      const char *backend)
{
    for (region_t **at = &agent->regions; *at != NULL; at = &(*at)->next) {
        region_t *found = *at;
        if (found->mem == mem && strcmp(found->backend, backend) == 0 &&
            memcmp(&found->row, row, sizeof *row) == 0) {
            *at = found->next;
            free(found);
            return true;
        }
    }
    return false;
}

EXPORT int
nixl_capi_deregister_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                         nixl_capi_opt_args_t options)
{
    bool good = true;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < list->list.count; i++) {
        good &=
            take_region_lock_held(agent, list->list.mem, &list->list.rows[i],
                                  options->backend->name);
    }
    pthread_mutex_unlock(&lock);
    return good ? 0 : -6;
}

/* -- Transfers --------------------------------------------------------------
 */

static bool
holds(const region_t *regions, const nixl_capi_xfer_dlist_t list,
      const row_t *row, const char *backend)
{
    for (const region_t *at = regions; at != NULL; at = at->next) {
        if (at->mem == list->mem && at->row.dev == row->dev &&
            strcmp(at->backend, backend) == 0 && at->row.addr <= row->addr &&
            (at->row.len == 0 ||
             row->addr + row->len <= at->row.addr + at->row.len)) {
            return true;
        }
    }
    return false;
}

/* Return whether there are rows and each lies in a region that the backend of
 * `name` has.  "" is the agent, as is its name. */
static bool
covers(nixl_capi_agent_t agent, const char *name,
       const nixl_capi_xfer_dlist_t list, const char *backend)
{
    bool all = list->count > 0;

    pthread_mutex_lock(&lock);
    const region_t *regions = agent->regions;
    if (name[0] != '\0' && strcmp(name, agent->name) != 0) {
        const peer_t *peer = *find_peer_lock_held(agent, name);
        regions = peer != NULL ? peer->regions : NULL;
    }
    for (size_t i = 0; all && i < list->count; i++) {
        all = holds(regions, list, &list->rows[i], backend);
    }
    pthread_mutex_unlock(&lock);
    return all;
}

static bool
has_equal_rows(const nixl_capi_xfer_dlist_t a, const nixl_capi_xfer_dlist_t b)
{
    bool equal = a->count == b->count;
    for (size_t i = 0; equal && i < a->count; i++) {
        equal = a->rows[i].len == b->rows[i].len;
    }
    return equal;
}

EXPORT int
nixl_capi_create_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t op,
                          nixl_capi_xfer_dlist_t local,
                          nixl_capi_xfer_dlist_t remote, const char *name,
                          nixl_capi_xfer_req_t *request_p,
                          nixl_capi_opt_args_t options)
{
    const char *backend = options->backend->name;

    wait_for_others();
    *request_p = GARBAGE;
    strcpy(fake_nixl.tried, backend);
    if (fake_nixl.fail_create != 0) {
        return fake_nixl.fail_create;
    }
    if (!has_equal_rows(local, remote) || !covers(agent, "", local, backend) ||
        !covers(agent, name, remote, backend)) {
        return -2;
    }
    nixl_capi_xfer_req_t request = make(sizeof *request);
    request->agent = agent;
    strcpy(request->peer, name);
    request->op = op;
    copy_rows(&request->local, local);
    copy_rows(&request->remote, remote);
    fake_nixl.pieces = local->count;
    *request_p = request;
    return 0;
}

EXPORT int
nixl_capi_prep_xfer_dlist(nixl_capi_agent_t agent, const char *name,
                          nixl_capi_xfer_dlist_t list,
                          nixl_capi_xfer_dlist_handle_t *handle_p,
                          nixl_capi_opt_args_t options)
{
    *handle_p = GARBAGE;
    if (fake_nixl.fail_prep != 0) {
        return fake_nixl.fail_prep;
    }
    if (!covers(agent, name, list, options->backend->name)) {
        return -6;
    }
    nixl_capi_xfer_dlist_handle_t handle = make(sizeof *handle);
    strcpy(handle->peer, name);
    strcpy(handle->backend, options->backend->name);
    copy_rows(&handle->list, list);
    fake_nixl.prepared++;
    *handle_p = handle;
    return 0;
}

EXPORT int
nixl_capi_release_xfer_dlist_handle(nixl_capi_agent_t agent,
                                    nixl_capi_xfer_dlist_handle_t handle)
{
    (void)agent;
    wait_for_others();
    free(handle->list.rows);
    return unmake(handle);
}

static bool
has_rows(const nixl_capi_xfer_dlist_handle_t handle, const int *rows,
         size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (rows[i] < 0 || (size_t)rows[i] >= handle->list.count) {
            return false;
        }
    }
    return count > 0;
}

static void
pick_rows(nixl_capi_xfer_dlist_t target, const nixl_capi_xfer_dlist_t source,
          const int *rows, size_t count)
{
    *target = (struct nixl_capi_xfer_dlist_s){
        source->mem, malloc((count + 1) * sizeof(row_t)), count};
    for (size_t i = 0; i < count; i++) {
        target->rows[i] = source->rows[rows[i]];
    }
}

EXPORT int
nixl_capi_make_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_op_t op,
                        nixl_capi_xfer_dlist_handle_t local,
                        const int *local_rows, size_t local_count,
                        nixl_capi_xfer_dlist_handle_t remote,
                        const int *remote_rows, size_t remote_count,
                        nixl_capi_xfer_req_t *request_p,
                        nixl_capi_opt_args_t options)
{
    wait_for_others();
    *request_p = GARBAGE;
    if (fake_nixl.fail_make != 0) {
        return fake_nixl.fail_make;
    }
    if (local_count != remote_count || local->peer[0] != '\0' ||
        remote->peer[0] == '\0' || !has_rows(local, local_rows, local_count) ||
        !has_rows(remote, remote_rows, remote_count) ||
        strcmp(local->backend, options->backend->name) != 0 ||
        strcmp(remote->backend, options->backend->name) != 0) {
        return -1;
    }
    nixl_capi_xfer_req_t request = make(sizeof *request);
    request->agent = agent;
    strcpy(request->peer, remote->peer);
    request->op = op;
    pick_rows(&request->local, &local->list, local_rows, local_count);
    pick_rows(&request->remote, &remote->list, remote_rows, remote_count);
    fake_nixl.indexed++;
    *request_p = request;
    return 0;
}

static void
move_bytes(const nixl_capi_xfer_req_t request)
{
    for (size_t i = 0; i < request->local.count; i++) {
        void *l = (void *)(uintptr_t)request->local.rows[i].addr;
        void *r = (void *)(uintptr_t)request->remote.rows[i].addr;
        memcpy(request->op == 0 ? l : r, request->op == 0 ? r : l,
               request->local.rows[i].len);
    }
}

/* False: its agent has ended. */
static bool
send_lock_held(const nixl_capi_agent_t from, const char *to,
               const blob_t *message)
{
    nixl_capi_agent_t target = find_agent_lock_held(to);
    if (target == NULL) {
        return false;
    }
    notif_t *notif = calloc(1, sizeof *notif), **at = &target->inbox;
    strcpy(notif->sender, from->name);
    notif->message = copy_blob(message->data, message->len);
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = notif;
    return true;
}

static int
finish(nixl_capi_xfer_req_t request)
{
    int once = atomic_exchange(&fake_nixl.fail_once, 0);
    uintptr_t lander = fake_nixl.lander;
    bool counts = lander == 0 || lander == (uintptr_t)pthread_self();

    if (!request->was_posted) {
        return -2;
    }
    if (once != 0) {
        request->is_posted = false;
        return once;
    }
    if (fake_nixl.fail_status != 0) {
        request->is_posted = false;
        return fake_nixl.fail_status;
    }
    if (!counts ||
        (!fake_nixl.lands && (request->polls_left > 0 || fake_nixl.hangs))) {
        request->polls_left -= counts && request->polls_left > 0;
        return 1;
    }
    if (request->is_posted) {
        request->is_posted = false;
        move_bytes(request);
        if (request->has_notif) {
            pthread_mutex_lock(&lock);
            (void)send_lock_held(request->agent, request->peer,
                                 &request->notif);
            pthread_mutex_unlock(&lock);
        }
    }
    return 0;
}

EXPORT int
nixl_capi_post_xfer_req(nixl_capi_agent_t agent, nixl_capi_xfer_req_t request,
                        nixl_capi_opt_args_t options)
{
    wait_for_others();
    fake_nixl.poster = (uintptr_t)pthread_self();
    if (fake_nixl.fail_post != 0) {
        return fake_nixl.fail_post;
    }
    if (request->is_posted) {
        return -2; /* it has not ended */
    }
    if (!knows(agent, request->peer)) {
        return -6;
    }
    if (options != NULL) { /* without one it takes the old one away */
        free(request->notif.data);
        request->notif = copy_blob(options->notif.data, options->notif.len);
        request->has_notif = options->has_notif;
    }
    request->is_posted = request->was_posted = true;
    request->polls_left = fake_nixl.polls;
    return finish(request);
}

EXPORT int
nixl_capi_get_xfer_status(nixl_capi_agent_t agent,
                          nixl_capi_xfer_req_t request)
{
    (void)agent;
    return finish(request);
}

EXPORT int
nixl_capi_release_xfer_req(nixl_capi_agent_t agent,
                           nixl_capi_xfer_req_t request)
{
    (void)agent;
    wait_for_others();
    request->is_released = true;
    fake_nixl.released_active += request->is_posted;
    while (fake_nixl.blocks) {
        pause_shortly();
    }
    return 0;
}

EXPORT int
nixl_capi_destroy_xfer_req(nixl_capi_xfer_req_t request)
{
    if (!request->is_released) {
        return -3;
    }
    free(request->local.rows);
    free(request->remote.rows);
    free(request->notif.data);
    return unmake(request);
}

EXPORT int
nixl_capi_estimate_xfer_cost(nixl_capi_agent_t agent,
                             nixl_capi_xfer_req_t request,
                             nixl_capi_opt_args_t options,
                             int64_t *duration_us_p, int64_t *margin_us_p,
                             nixl_capi_cost_t *method_p)
{
    (void)agent;
    (void)options;
    wait_for_others();
    fake_nixl.used_released += request->is_released;
    *duration_us_p = 7;
    *margin_us_p = 3;
    *method_p = 0;
    return fake_nixl.fail_estimate;
}

/* -- Notifications ----------------------------------------------------------
 */

EXPORT int
nixl_capi_create_notif_map(nixl_capi_notif_map_t *notifs_p)
{
    *notifs_p = make(sizeof **notifs_p);
    return 0;
}

EXPORT int
nixl_capi_notif_map_clear(nixl_capi_notif_map_t notifs)
{
    while (notifs->first != NULL) {
        notif_t *next = notifs->first->next;
        free(notifs->first->message.data);
        free(notifs->first);
        notifs->first = next;
    }
    return 0;
}

EXPORT int
nixl_capi_destroy_notif_map(nixl_capi_notif_map_t notifs)
{
    nixl_capi_notif_map_clear(notifs);
    return unmake(notifs);
}

/* The senders are looked at one by one: the n-th of them. */
static const notif_t *
sender_at(const nixl_capi_notif_map_t notifs, size_t n)
{
    for (const notif_t *at = notifs->first; at != NULL; at = at->next) {
        const notif_t *before = notifs->first;
        while (before != at && strcmp(before->sender, at->sender) != 0) {
            before = before->next;
        }
        if (before == at && n-- == 0) {
            return at;
        }
    }
    return NULL;
}

EXPORT int
nixl_capi_notif_map_size(nixl_capi_notif_map_t notifs, size_t *size_p)
{
    *size_p = 0;
    while (sender_at(notifs, *size_p) != NULL) {
        ++*size_p;
    }
    return 0;
}

EXPORT int
nixl_capi_notif_map_get_agent_at(nixl_capi_notif_map_t notifs, size_t i,
                                 const char **name_p)
{
    *name_p = sender_at(notifs, i)->sender;
    return 0;
}

static const notif_t *
message_at(const nixl_capi_notif_map_t notifs, const char *name, size_t i)
{
    const notif_t *at = notifs->first;
    while (at != NULL && (strcmp(at->sender, name) != 0 || i-- > 0)) {
        at = at->next;
    }
    return at;
}

EXPORT int
nixl_capi_notif_map_get_notifs_size(nixl_capi_notif_map_t notifs,
                                    const char *name, size_t *size_p)
{
    size_t size = 0;

    while (message_at(notifs, name, size) != NULL) {
        size++;
    }
    if (size == 0) {
        return -1;
    }
    *size_p = size;
    return 0;
}

EXPORT int
nixl_capi_notif_map_get_notif(nixl_capi_notif_map_t notifs, const char *name,
                              size_t i, const void **data_p, size_t *len_p)
{
    const notif_t *at = message_at(notifs, name, i);
    if (at == NULL) {
        return -1;
    }
    *data_p = at->message.data;
    *len_p = at->message.len;
    return 0;
}

EXPORT int
nixl_capi_get_notifs(nixl_capi_agent_t agent, nixl_capi_notif_map_t notifs,
                     nixl_capi_opt_args_t options)
{
    (void)options;
    wait_for_others();
    notif_t **at = &notifs->first;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    pthread_mutex_lock(&lock);
    *at = agent->inbox;
    agent->inbox = NULL;
    fake_nixl.looks++;
    pthread_mutex_unlock(&lock);
    return 0;
}

EXPORT int
nixl_capi_gen_notif(nixl_capi_agent_t agent, const char *name,
                    const void *data, size_t len, nixl_capi_opt_args_t options)
{
    const blob_t message = {(char *)data, len};
    (void)options;
    if (fake_nixl.fail_notif != 0) {
        return fake_nixl.fail_notif;
    }
    if (!knows(agent, name)) {
        return -6;
    }
    pthread_mutex_lock(&lock);
    bool is_sent = send_lock_held(agent, name, &message);
    pthread_mutex_unlock(&lock);
    return is_sent ? 0 : -2;
}

/* -- Asking storage ---------------------------------------------------------
 */

EXPORT int
nixl_capi_create_query_resp_list(nixl_capi_query_resp_list_t *query_p)
{
    *query_p = make(sizeof **query_p);
    return 0;
}

EXPORT int
nixl_capi_destroy_query_resp_list(nixl_capi_query_resp_list_t query)
{
    return unmake(query);
}

EXPORT int
nixl_capi_query_resp_list_size(nixl_capi_query_resp_list_t query,
                               size_t *size_p)
{
    *size_p = query->count;
    return 0;
}

EXPORT int
nixl_capi_query_resp_list_has_value(nixl_capi_query_resp_list_t query,
                                    size_t i, bool *has_value_p)
{
    *has_value_p = query->has[i];
    return 0;
}

EXPORT int
nixl_capi_query_resp_list_get_params(nixl_capi_query_resp_list_t query,
                                     size_t i, nixl_capi_params_t *params_p)
{
    *params_p = GARBAGE;
    if (!query->has[i]) {
        return -1;
    }
    *params_p = make(sizeof **params_p);
    return nixl_capi_params_add(*params_p, "size", "5");
}

/* Every second row is there. */
EXPORT int
nixl_capi_query_mem(nixl_capi_agent_t agent, nixl_capi_reg_dlist_t list,
                    nixl_capi_query_resp_list_t query,
                    nixl_capi_opt_args_t options)
{
    (void)agent;
    if (strcmp(options->backend->name, "POSIX") != 0) {
        return -2;
    }
    query->count = list->list.count;
    for (size_t i = 0; i < query->count; i++) {
        query->has[i] = i % 2 == 0;
    }
    return 0;
}
