#include <vnx/vnx.h>

const char *
vnx_version(void)
{
    return VNX_VERSION;
}

const char *
vnx_mem_name(vnx_mem_t mem)
{
    static const char *const names[VNX_MEM_COUNT] = {"DRAM", "VRAM", "BLK",
                                                     "OBJ", "FILE"};
    return (unsigned)mem < VNX_MEM_COUNT ? names[mem] : NULL;
}
