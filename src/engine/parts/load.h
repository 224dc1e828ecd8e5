/*
 * What loading a peer's metadata has alike in all engines: who is refused, and
 * with which words.
 */
#ifndef VNXI_PARTS_LOAD_H
#define VNXI_PARTS_LOAD_H

#include "engine/parts/metadata.h"

#define VNXI_OP_LOAD "add_remote_agent"

/* Returns `status`; the error names the agent that the blob is of. */
vnx_status_t vnxi_load_refuse(const vnxi_metadata_t *blob, vnx_status_t status,
                              const char *cause, vnx_error_t *error);

/* Without connection data, and of an agent that is not known. */
vnx_status_t vnxi_load_refuse_unknown(const vnxi_metadata_t *blob,
                                      vnx_error_t *error);

/* The two have no backend in common: "it offers UCX, GDS, this agent <ours>",
 * with names that print. */
vnx_status_t vnxi_load_refuse_no_way(const vnxi_metadata_t *blob,
                                     const char *ours, vnx_error_t *error);

#endif
