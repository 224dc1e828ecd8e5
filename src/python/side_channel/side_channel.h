/*
 * The side channels: vnx/side_channel.h as Python types.  SideChannel is the
 * one implementation.  Its subclasses, one for each transport, differ only in
 * their names.
 *
 *   side_channel.c         the types, their creation, counters
 *   args.c                 arguments
 *   listen.c               methods about listening
 *   ask.c                  requests, and SideChannelRequests for event loops
 *   publish.c              rows that an agent publishes, and those of a peer
 */
#ifndef VNXI_PYTHON_SIDE_CHANNEL_H
#define VNXI_PYTHON_SIDE_CHANNEL_H

#include "publish/publish.h"
#include "python/agent/agent.h"
#include "python/arguments/args.h"
#include "python/arguments/convert.h"
#include "python/module.h"
#include "side_channel/side_channel.h"

typedef struct vnxi_py_side_channel {
    PyObject_HEAD vnx_side_channel_t *channel; /* owned; constant */
    vnxi_py_state_t *state;                    /* of the module of the type */
} vnxi_py_side_channel_t;

/* -- Methods ------------------------------------------------------------- */

#define VNXI_PY_SIDE_METHODS(X) \
    /* listen.c */              \
    X(start_listener)           \
    X(set_metadata)             \
    X(remove_metadata)          \
    X(advertised_address)       \
    X(shutdown)                 \
    /* side_channel.c */        \
    X(is_running)               \
    X(stats)                    \
    /* ask.c */                 \
    X(request_metadata)         \
    X(request_many)             \
    X(_begin)                   \
    X(_attach)                  \
    X(_begin_attach)            \
    /* publish.c */             \
    X(_publish)

#define VNXI_PY_SIDE_DECLARE(name) VNXI_PY_METHOD_DECLARE(vnxi_py_side_, name)
VNXI_PY_SIDE_METHODS(VNXI_PY_SIDE_DECLARE)
#undef VNXI_PY_SIDE_DECLARE

#define VNXI_PY_SIDE_METHOD(name, params, doc) \
    VNXI_PY_SIDE_METHOD_AS(name, #name, params, doc)
#define VNXI_PY_SIDE_METHOD_AS(name, title, params, doc)                     \
    VNXI_PY_METHOD(vnxi_py_side_, vnxi_py_side_channel_t, vnxi_py_is_usable, \
                   name, title, params, doc)

/* -- Arguments; each false: exception ------------------------------------- */

/* Get a port from `min` up. */
bool vnxi_py_side_port(vnxi_py_state_t *state, const char *operation,
                       PyObject *value, int min, int *port_p);

/* Get a host as str, owned: a str unchanged, or several joined with commas. */
PyObject *vnxi_py_side_host(const char *operation, PyObject *value);

/* Get an agent that was created, borrowed. */
vnxi_py_agent_t *vnxi_py_side_agent(vnxi_py_state_t *state,
                                    const char *operation, PyObject *value);

/* Get a key: None, str, bytes, or a tuple of ints, whose text is "0,1".  Give
 * it back with vnxi_py_bytes_put(). */
bool vnxi_py_side_key(vnxi_py_state_t *state, const char *operation,
                      PyObject *value, vnxi_py_bytes_t *key_p);

/* Blobs from an argument that is bytes-like or a mapping from keys. */
typedef struct vnxi_py_blobs {
    vnx_side_channel_blob_t *blobs;
    size_t count;
    PyObject *items; /* owns the borrowed data */
    vnxi_py_bytes_t *bytes;
} vnxi_py_blobs_t;

bool vnxi_py_side_blobs(vnxi_py_state_t *state, const char *operation,
                        PyObject *value, vnxi_py_blobs_t *blobs_p);
void vnxi_py_side_blobs_put(vnxi_py_blobs_t *blobs);

/* -- Peers ---------------------------------------------------------------- */

/* Make (name, {name of a list: (prepared list, descriptors)}) of a peer, which
 * is taken. */
PyObject *vnxi_py_peer_new(vnxi_py_agent_t *agent, vnx_peer_t *peer);

#endif
