/*
 * Errors for loading a peer's metadata, shared by all engines.
 */
#ifndef VNXI_PARTS_LOAD_H
#define VNXI_PARTS_LOAD_H

#include "engine/parts/metadata.h"

#define VNXI_OP_LOAD "add_remote_agent"

/* Returns `status`; the error has the name of the blob's agent. */
vnx_status_t vnxi_load_refuse(const vnxi_metadata_t *blob, vnx_status_t status,
                              const char *cause, vnx_error_t *error);

/* The blob has no connection data, and its agent is unknown. */
vnx_status_t vnxi_load_refuse_unknown(const vnxi_metadata_t *blob,
                                      vnx_error_t *error);

/* The agents have no backend in common: "it offers UCX, GDS, this agent
 * <ours>", with printable names. */
vnx_status_t vnxi_load_refuse_no_way(const vnxi_metadata_t *blob,
                                     const char *ours, vnx_error_t *error);

#endif
