/*
 * The nixl engine, as the table of engines knows it.
 */
#ifndef VNXI_NIXL_OPS_H
#define VNXI_NIXL_OPS_H

#include "engine/engine.h"

extern const vnxi_engine_ops_t vnxi_nixl_ops;

#endif
