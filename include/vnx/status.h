/*
 * All statuses of the library in one table.  The enum, the names, the texts
 * and the Python exception classes are generated from it.
 *
 * The numbers and names from NIXL_ERR_NOT_POSTED to NIXL_ERR_NO_TELEMETRY are
 * those of NIXL 1.5 (nixl_status_t), so a number or name in a log means the
 * same in both.  Our own start at -100.
 */
#ifndef VNX_STATUS_H
#define VNX_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* X(symbol, number, name shown in messages, text, Python exception class).  A
 * NULL class marks a status that is not an error. */
#define VNX_STATUS_TABLE(X)                                                 \
    X(VNX_IN_PROG, 1, "NIXL_IN_PROG", "in progress", NULL)                  \
    X(VNX_OK, 0, "NIXL_SUCCESS", "success", NULL)                           \
    X(VNX_ERR_NOT_POSTED, -1, "NIXL_ERR_NOT_POSTED",                        \
      "the transfer was not posted", "nixlNotPostedError")                  \
    X(VNX_ERR_INVALID_PARAM, -2, "NIXL_ERR_INVALID_PARAM",                  \
      "invalid parameter", "nixlInvalidParamError")                         \
    X(VNX_ERR_BACKEND, -3, "NIXL_ERR_BACKEND", "the backend failed",        \
      "nixlBackendError")                                                   \
    X(VNX_ERR_NOT_FOUND, -4, "NIXL_ERR_NOT_FOUND", "not found",             \
      "nixlNotFoundError")                                                  \
    X(VNX_ERR_MISMATCH, -5, "NIXL_ERR_MISMATCH", "mismatch",                \
      "nixlMismatchError")                                                  \
    X(VNX_ERR_NOT_ALLOWED, -6, "NIXL_ERR_NOT_ALLOWED", "not allowed",       \
      "nixlNotAllowedError")                                                \
    X(VNX_ERR_REPOST_ACTIVE, -7, "NIXL_ERR_REPOST_ACTIVE",                  \
      "the transfer is still active", "nixlRepostActiveError")              \
    X(VNX_ERR_UNKNOWN, -8, "NIXL_ERR_UNKNOWN", "unknown error",             \
      "nixlUnknownError")                                                   \
    X(VNX_ERR_NOT_SUPPORTED, -9, "NIXL_ERR_NOT_SUPPORTED", "not supported", \
      "nixlNotSupportedError")                                              \
    X(VNX_ERR_REMOTE_DISCONNECT, -10, "NIXL_ERR_REMOTE_DISCONNECT",         \
      "the peer is gone", "nixlRemoteDisconnectError")                      \
    X(VNX_ERR_CANCELED, -11, "NIXL_ERR_CANCELED",                           \
      "the transfer was cancelled", "nixlCancelledError")                   \
    X(VNX_ERR_NO_TELEMETRY, -12, "NIXL_ERR_NO_TELEMETRY", "no telemetry",   \
      "nixlNoTelemetryError")                                               \
    X(VNX_ERR_TIMEOUT, -100, "NIXL_ERR_TIMEOUT", "timed out",               \
      "nixlTimeoutError")                                                   \
    X(VNX_ERR_NO_MEMORY, -101, "NIXL_ERR_NO_MEMORY", "out of memory",       \
      "nixlOutOfMemoryError")                                               \
    X(VNX_ERR_CLOSED, -102, "NIXL_ERR_CLOSED", "the agent is closed",       \
      "nixlClosedError")

/* The result of a call: > 0 in progress, 0 done, < 0 an error. */
typedef enum vnx_status {
#define VNX_STATUS_ENUM(sym, num, name, text, pyclass) sym = (num),
    VNX_STATUS_TABLE(VNX_STATUS_ENUM)
#undef VNX_STATUS_ENUM
} vnx_status_t;

/* The number of rows of the table. */
enum {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a term of a sum */
#define VNX_STATUS_ADD(sym, num, name, text, pyclass) +1
    VNX_STATUS_COUNT = 0 VNX_STATUS_TABLE(VNX_STATUS_ADD)
#undef VNX_STATUS_ADD
};

/* The position of a status in the table, for arrays of VNX_STATUS_COUNT; that
 * of VNX_ERR_UNKNOWN for a number that is not in the table. */
unsigned vnx_status_index(vnx_status_t status);

/* The status at a position; VNX_ERR_UNKNOWN past the end. */
vnx_status_t vnx_status_at(unsigned index);

/* "NIXL_ERR_NOT_FOUND" for VNX_ERR_NOT_FOUND; "NIXL_ERR_UNKNOWN" for a number
 * that is not in the table.  Static storage. */
const char *vnx_status_name(vnx_status_t status);

/* "not found" for VNX_ERR_NOT_FOUND.  Static storage. */
const char *vnx_status_text(vnx_status_t status);

/* The name of the Python exception class; NULL if the status is not an error.
 * Static storage. */
const char *vnx_status_python_class(vnx_status_t status);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
