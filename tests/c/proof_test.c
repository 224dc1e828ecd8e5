#include "vnx_test.h"

#include <string.h>

#include "side_channel/proof.h"

static vnxi_proof_t
proof_of(const char *secret, int client, int server)
{
    vnxi_proof_t proof = {.secret = secret};
    memset(proof.client_nonce, client, sizeof proof.client_nonce);
    memset(proof.server_nonce, server, sizeof proof.server_nonce);
    return proof;
}

/* The bytes of docs/wire.md: HMAC-SHA256 over label, nonces. */
static void
test_proof_has_its_bytes(void **state)
{
    (void)state;
    static const unsigned char expected[] = {
        0x8b, 0xe8, 0x56, 0x42, 0x87, 0x19, 0x7a, 0xd2, 0x3f, 0xa2, 0x5a,
        0xb8, 0x49, 0x27, 0xd5, 0xe4, 0xd4, 0x1f, 0x33, 0x95, 0xb3, 0x92,
        0xf5, 0x05, 0x3a, 0x22, 0x91, 0xf7, 0x3b, 0x95, 0x7b, 0x92};
    vnxi_proof_t proof = proof_of("correct horse", 1, 2);
    unsigned char mac[VNXI_MAC_LEN];

    assert_true(vnxi_proof_make(&proof, VNXI_PROOF_CLIENT, mac));
    assert_memory_equal(mac, expected, sizeof mac);
}

static void
test_proof_is_for_one_secret_one_side_and_both_nonces(void **state)
{
    (void)state;
    const vnxi_proof_t right = proof_of("the secret", 1, 2);
    const vnxi_proof_t wrong[] = {
        proof_of("the secreu", 1, 2), proof_of("the secret ", 1, 2),
        proof_of("the secret", 3, 2), proof_of("the secret", 1, 3),
        proof_of("the secret", 2, 1),
    };
    unsigned char mac[VNXI_MAC_LEN];

    assert_true(vnxi_proof_make(&right, VNXI_PROOF_CLIENT, mac));
    assert_true(vnxi_proof_check(&right, VNXI_PROOF_CLIENT, mac));
    assert_false(vnxi_proof_check(&right, VNXI_PROOF_SERVER, mac));
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_false(vnxi_proof_check(&wrong[i], VNXI_PROOF_CLIENT, mac));
    }
    for (size_t i = 0; i < sizeof mac; i++) {
        mac[i] ^= 1;
        assert_false(vnxi_proof_check(&right, VNXI_PROOF_CLIENT, mac));
        mac[i] ^= 1;
    }
}

static void
test_proof_seals_are_for_one_request_and_its_reply(void **state)
{
    (void)state;
    const vnxi_proof_t proof = proof_of("the secret", 1, 2);
    const vnxi_proof_t later = proof_of("the secret", 1, 4);
    unsigned char digests[2][VNXI_DIGEST_LEN], macs[7][VNXI_MAC_LEN];

    assert_true(vnxi_proof_digest("blob", 4, digests[0]));
    assert_true(vnxi_proof_digest("glob", 4, digests[1]));
    vnxi_proof_seal_request(&proof, "0,1", 3, macs[0]);
    vnxi_proof_seal_request(&proof, "0,2", 3, macs[1]);
    vnxi_proof_seal_reply(&proof, "0,1", 3, 0, digests[0], macs[2]);
    vnxi_proof_seal_reply(&proof, "0,1", 3, 0, digests[1], macs[3]);
    vnxi_proof_seal_reply(&proof, "0,1", 3, 16, digests[0], macs[4]);
    vnxi_proof_seal_reply(&proof, "0,2", 3, 0, digests[0], macs[5]);
    vnxi_proof_seal_reply(&later, "0,1", 3, 0, digests[0], macs[6]);
    for (int i = 0; i < 7; i++) {
        for (int j = 0; j < 7; j++) {
            assert_int_equal(vnxi_mac_equal(macs[i], macs[j]), i == j);
        }
    }
}

static void
test_proof_nonces_differ(void **state)
{
    (void)state;
    unsigned char one[VNXI_NONCE_LEN], other[VNXI_NONCE_LEN];

    assert_true(vnxi_proof_nonce(one));
    assert_true(vnxi_proof_nonce(other));
    assert_memory_not_equal(one, other, sizeof one);
}

static void
test_proof_secrets_are_equal_as_a_whole(void **state)
{
    (void)state;
    assert_true(vnxi_secret_equal("the secret", "the secret", 10));
    assert_false(vnxi_secret_equal("the secret", "the secret", 9));
    assert_false(vnxi_secret_equal("the secret", "the secret\0", 11));
    assert_false(vnxi_secret_equal("the secret", "The secret", 10));
    assert_false(vnxi_secret_equal("the secret", "", 0));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_proof_has_its_bytes),
        cmocka_unit_test(
            test_proof_is_for_one_secret_one_side_and_both_nonces),
        cmocka_unit_test(test_proof_seals_are_for_one_request_and_its_reply),
        cmocka_unit_test(test_proof_nonces_differ),
        cmocka_unit_test(test_proof_secrets_are_equal_as_a_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
