#include <string.h>
#include <vnx/vnx.h>

const char *
vnx_version(void)
{
    return VNX_VERSION_STRING;
}

#ifdef VNXI_SIDE_CHANNEL_TLS
#define TLS true
#else
#define TLS false
#endif
#ifdef VNXI_SIDE_CHANNEL_HTTP
#define HTTP true
#else
#define HTTP false
#endif
#ifdef VNXI_SIDE_CHANNEL_ZMQ
#define ZMQ true
#else
#define ZMQ false
#endif

static const vnx_feature_t features[] = {
    {"http", HTTP}, {"shared_secret", TLS}, {"signed_metadata", TLS},
    {"tls", TLS},   {"zmq", ZMQ},
};
#define COUNT (sizeof features / sizeof features[0])

const vnx_feature_t *
vnx_features(size_t *count_p)
{
    *count_p = COUNT;
    return features;
}

bool
vnx_has_feature(const char *name)
{
    for (size_t i = 0; i < COUNT; i++) {
        if (strcmp(features[i].name, name) == 0) {
            return features[i].is_built;
        }
    }
    return false;
}

const char *
vnx_mem_name(vnx_mem_t mem)
{
    static const char *const names[VNX_MEM_COUNT] = {"DRAM", "VRAM", "BLK",
                                                     "OBJ", "FILE"};
    return (unsigned)mem < VNX_MEM_COUNT ? names[mem] : NULL;
}
