#include "engine/native/identity.h"

#include <string.h>

#include "base/error.h"

#define OPERATION "vnx_agent_load_metadata"

/* A reader accepts every minor version of its major version. */
#define MAJOR 1u
#define MINOR 0u

#define PARTIAL 0x1u

void
vnxi_identity_write(vnxi_writer_t *writer, const vnxi_identity_t *identity)
{
    size_t start = writer->len;

    vnxi_write_u8(writer, MAJOR);
    vnxi_write_u8(writer, MINOR);
    vnxi_write_u16(writer, identity->partial ? PARTIAL : 0);
    vnxi_write_u64(writer, identity->epoch);
    vnxi_write_bytes(writer, identity->instance, VNXI_INSTANCE_SIZE);
    if (!writer->failed) {
        vnxi_write_u64(writer,
                       vnxi_hash(writer->data + start, writer->len - start));
    }
}

static vnx_status_t
mismatch(vnx_error_t *error, const char *what)
{
    return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                          "the agent's identity (VNX) %s", what);
}

vnx_status_t
vnxi_identity_read(const void *data, size_t len, vnxi_identity_t *identity_p,
                   vnx_error_t *error)
{
    vnxi_reader_t reader = vnxi_reader(data, len);
    vnxi_identity_t identity = {0};

    unsigned major_number = vnxi_read_u8(&reader);
    vnxi_read_u8(&reader); /* minor: its additions come after the known
                              fields */
    uint16_t flags = vnxi_read_u16(&reader);
    if (!reader.failed && major_number != MAJOR) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              "the agent's identity (VNX) has version %u, "
                              "only %u is supported",
                              major_number, MAJOR);
    }
    identity.partial = (flags & PARTIAL) != 0;
    identity.epoch = vnxi_read_u64(&reader);
    const unsigned char *instance =
        vnxi_read_bytes(&reader, VNXI_INSTANCE_SIZE);
    uint64_t hash = vnxi_hash(data, len - vnxi_reader_left(&reader));
    bool is_whole = vnxi_read_u64(&reader) == hash;
    if (reader.failed || instance == NULL) {
        return mismatch(error, "is cut off");
    }
    if (!is_whole) {
        return mismatch(error, "is damaged: its checksum is wrong");
    }
    memcpy(identity.instance, instance, sizeof identity.instance);
    *identity_p = identity;
    return VNX_OK;
}
