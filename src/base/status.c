#include <vnx/status.h>

#include <stddef.h>

const char *
vnx_status_name(vnx_status_t status)
{
    switch (status) {
#define CASE(sym, num, name, text, pyclass) \
    case sym:                               \
        return name;
        VNX_STATUS_TABLE(CASE)
#undef CASE
    }
    return "NIXL_ERR_UNKNOWN";
}

const char *
vnx_status_text(vnx_status_t status)
{
    switch (status) {
#define CASE(sym, num, name, text, pyclass) \
    case sym:                               \
        return text;
        VNX_STATUS_TABLE(CASE)
#undef CASE
    }
    return "unknown error";
}

const char *
vnx_status_python_class(vnx_status_t status)
{
    switch (status) {
#define CASE(sym, num, name, text, pyclass) \
    case sym:                               \
        return pyclass;
        VNX_STATUS_TABLE(CASE)
#undef CASE
    }
    return "nixlUnknownError";
}
