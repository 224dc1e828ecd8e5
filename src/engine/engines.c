/*
 * The engines in this build.
 */
#include <string.h>

#include "engine/native/native.h"
#include "engine/nixl/ops.h"

const vnxi_engine_ops_t *
vnxi_engine_find(const char *name)
{
    static const vnxi_engine_ops_t *const engines[] = {
        &vnxi_native_ops,
        &vnxi_nixl_ops,
    };

    for (size_t i = 0; i < sizeof engines / sizeof *engines; i++) {
        if (strcmp(engines[i]->name, name) == 0) {
            return engines[i];
        }
    }
    return NULL;
}
