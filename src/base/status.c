#include <vnx/status.h>

#include <stddef.h>

typedef struct row {
    vnx_status_t status;
    const char *name, *text, *python_class;
} row_t;

static const row_t rows[] = {
#define ROW(sym, num, name, text, pyclass) {sym, name, text, pyclass},
    VNX_STATUS_TABLE(ROW)
#undef ROW
};

unsigned
vnx_status_index(vnx_status_t status)
{
    unsigned unknown = 0;

    for (unsigned i = 0; i < VNX_STATUS_COUNT; i++) {
        if (rows[i].status == status) {
            return i;
        }
        if (rows[i].status == VNX_ERR_UNKNOWN) {
            unknown = i;
        }
    }
    return unknown;
}

vnx_status_t
vnx_status_at(unsigned index)
{
    return index < VNX_STATUS_COUNT ? rows[index].status : VNX_ERR_UNKNOWN;
}

const char *
vnx_status_name(vnx_status_t status)
{
    return rows[vnx_status_index(status)].name;
}

const char *
vnx_status_text(vnx_status_t status)
{
    return rows[vnx_status_index(status)].text;
}

const char *
vnx_status_python_class(vnx_status_t status)
{
    return rows[vnx_status_index(status)].python_class;
}
