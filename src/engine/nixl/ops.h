/*
 * The table of operations of the nixl engine.
 */
#ifndef VNXI_NIXL_OPS_H
#define VNXI_NIXL_OPS_H

#include "engine/engine.h"

extern const vnxi_engine_ops_t vnxi_nixl_ops;

#endif
