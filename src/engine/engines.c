#include "engine/native/native.h"
#include "engine/nixl/ops.h"

const vnxi_engine_ops_t *const vnxi_engines[] = {
    &vnxi_native_ops,
    &vnxi_nixl_ops,
};
