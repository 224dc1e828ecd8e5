/*
 * libcurl, opened at the first HTTP request.  It loads some twenty other
 * libraries, which would make importing this library too slow.
 */
#ifndef VNXI_SIDE_CHANNEL_CURL_H
#define VNXI_SIDE_CHANNEL_CURL_H

#include <curl/curl.h>
#include <vnx/error.h>

/* Names without the prefix "curl_", because some functions are macros too. */
/* clang-format off */
#define VNXI_CURL_CALLS(CALL) \
    CALL(easy_cleanup) \
    CALL(easy_getinfo) \
    CALL(easy_init) \
    CALL(easy_setopt) \
    CALL(easy_strerror) \
    CALL(global_init) \
    CALL(multi_add_handle) \
    CALL(multi_assign) \
    CALL(multi_cleanup) \
    CALL(multi_info_read) \
    CALL(multi_init) \
    CALL(multi_remove_handle) \
    CALL(multi_setopt) \
    CALL(multi_socket_action) \
    CALL(slist_append) \
    CALL(slist_free_all) \
    CALL(url) \
    CALL(url_cleanup) \
    CALL(url_set)
/* clang-format on */

typedef struct vnxi_curl {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration */
#define VNXI_CURL_POINTER(name) __typeof__(curl_##name) *name;
    VNXI_CURL_CALLS(VNXI_CURL_POINTER)
#undef VNXI_CURL_POINTER
} vnxi_curl_t;

/* Constant once vnxi_curl_load() has returned VNX_OK. */
extern vnxi_curl_t vnxi_curl;

/* Open the library, once per process.  Any thread.  VNX_ERR_NOT_SUPPORTED: it
 * is not installed, or lacks a function that the record names.
 * VNX_ERR_BACKEND: there are too few descriptors to open it, or its
 * initialization failed.  After an error, the next call tries again. */
vnx_status_t vnxi_curl_load(const char *operation, vnx_error_t *error);

#endif
