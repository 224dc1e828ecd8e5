//! NIXL's C interface from Rust, without a crate: two agents in one program and
//! a READ with a notification.
//!
//!     rustc --edition 2021 examples/nixl_capi.rs -L FOLDER
//!     LD_LIBRARY_PATH=FOLDER ./nixl_capi
//!
//! FOLDER is the one of libnixl_capi.so.  The crate nixl-sys with the feature
//! `stub-api` loads the same library when the program runs.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr::{null, null_mut};
use std::thread::sleep;
use std::time::Duration;

type Handle = *mut c_void;

const IN_PROGRESS: c_int = 1;
const DRAM: c_int = 0;
const READ: c_int = 0;
const BLOCK_BYTES: usize = 65536;
const BLOCKS: usize = 16;

#[rustfmt::skip]
#[link(name = "nixl_capi")]
extern "C" {
    fn nixl_capi_create_agent(name: *const c_char, agent: *mut Handle) -> c_int;
    fn nixl_capi_destroy_agent(agent: Handle) -> c_int;
    fn nixl_capi_create_params(params: *mut Handle) -> c_int;
    fn nixl_capi_destroy_params(params: Handle) -> c_int;
    fn nixl_capi_create_backend(agent: Handle, plugin: *const c_char, params: Handle, backend: *mut Handle) -> c_int;
    fn nixl_capi_destroy_backend(backend: Handle) -> c_int;
    fn nixl_capi_create_reg_dlist(mem: c_int, list: *mut Handle) -> c_int;
    fn nixl_capi_destroy_reg_dlist(list: Handle) -> c_int;
    fn nixl_capi_reg_dlist_add_desc(list: Handle, addr: usize, len: usize, dev: u64, meta: *const c_void, meta_len: usize) -> c_int;
    fn nixl_capi_register_mem(agent: Handle, list: Handle, options: Handle) -> c_int;
    fn nixl_capi_get_local_md(agent: Handle, data: *mut *mut c_void, len: *mut usize) -> c_int;
    fn nixl_capi_load_remote_md(agent: Handle, data: *const c_void, len: usize, name: *mut *mut c_char) -> c_int;
    fn nixl_capi_create_xfer_dlist(mem: c_int, list: *mut Handle) -> c_int;
    fn nixl_capi_destroy_xfer_dlist(list: Handle) -> c_int;
    fn nixl_capi_xfer_dlist_add_desc(list: Handle, addr: usize, len: usize, dev: u64) -> c_int;
    fn nixl_capi_create_opt_args(options: *mut Handle) -> c_int;
    fn nixl_capi_destroy_opt_args(options: Handle) -> c_int;
    fn nixl_capi_opt_args_set_notif_msg(options: Handle, data: *const c_void, len: usize) -> c_int;
    fn nixl_capi_opt_args_set_has_notif(options: Handle, has_notif: bool) -> c_int;
    fn nixl_capi_create_xfer_req(agent: Handle, op: c_int, local: Handle, remote: Handle, peer: *const c_char, request: *mut Handle, options: Handle) -> c_int;
    fn nixl_capi_post_xfer_req(agent: Handle, request: Handle, options: Handle) -> c_int;
    fn nixl_capi_get_xfer_status(agent: Handle, request: Handle) -> c_int;
    fn nixl_capi_release_xfer_req(agent: Handle, request: Handle) -> c_int;
    fn nixl_capi_destroy_xfer_req(request: Handle) -> c_int;
    fn nixl_capi_create_notif_map(map: *mut Handle) -> c_int;
    fn nixl_capi_destroy_notif_map(map: Handle) -> c_int;
    fn nixl_capi_get_notifs(agent: Handle, map: Handle, options: Handle) -> c_int;
    fn nixl_capi_notif_map_size(map: Handle, size: *mut usize) -> c_int;
    fn nixl_capi_notif_map_get_agent_at(map: Handle, index: usize, name: *mut *const c_char) -> c_int;
    fn nixl_capi_notif_map_get_notif(map: Handle, name: *const c_char, index: usize, data: *mut *const c_void, len: *mut usize) -> c_int;
    fn free(data: *mut c_void);
}

fn check(what: &str, status: c_int) {
    assert!(status >= 0, "{what}: status {status}");
}

/// Call a function of the interface; a negative status ends the program.
macro_rules! call {
    ($name:ident($($argument:expr),*)) => {
        check(stringify!($name), unsafe { $name($($argument),*) })
    };
}

/// Get a handle from a call whose last argument is the place for it.
macro_rules! make {
    ($name:ident($($argument:expr),*)) => {{
        let mut handle: Handle = null_mut();
        call!($name($($argument,)* &mut handle));
        handle
    }};
}

struct Agent {
    handle: Handle,
    memory: Vec<u8>,
}

impl Agent {
    /// An agent with the backend UCX that has registered its memory.
    fn new(name: &str, fill: u8) -> Agent {
        let (name, ucx) = (CString::new(name).unwrap(), CString::new("UCX").unwrap());
        let memory = vec![fill; BLOCKS * BLOCK_BYTES];
        let handle = make!(nixl_capi_create_agent(name.as_ptr()));
        let params = make!(nixl_capi_create_params());
        let mut backend: Handle = null_mut();
        call!(nixl_capi_create_backend(
            handle,
            ucx.as_ptr(),
            params,
            &mut backend
        ));
        call!(nixl_capi_destroy_backend(backend)); // the handle; the backend stays
        call!(nixl_capi_destroy_params(params));
        let region = make!(nixl_capi_create_reg_dlist(DRAM));
        let (at, len) = (memory.as_ptr() as usize, memory.len());
        call!(nixl_capi_reg_dlist_add_desc(region, at, len, 0, null(), 0));
        call!(nixl_capi_register_mem(handle, region, null_mut()));
        call!(nixl_capi_destroy_reg_dlist(region));
        Agent { handle, memory }
    }

    /// Get to know another agent.  Between processes, send the bytes.
    fn meet(&self, other: &Agent) {
        let (mut data, mut len, mut name) = (null_mut(), 0, null_mut());
        call!(nixl_capi_get_local_md(other.handle, &mut data, &mut len));
        call!(nixl_capi_load_remote_md(self.handle, data, len, &mut name));
        unsafe {
            free(data);
            free(name.cast());
        }
    }

    /// A list of one block.
    fn block(&self, number: usize) -> Handle {
        let list = make!(nixl_capi_create_xfer_dlist(DRAM));
        let at = self.memory.as_ptr() as usize + number * BLOCK_BYTES;
        call!(nixl_capi_xfer_dlist_add_desc(list, at, BLOCK_BYTES, 0));
        list
    }

    /// Read a block of a peer into the same block here, and tell the peer.
    fn read(&self, peer: &Agent, peer_name: &str, number: usize) {
        let message = format!("block {number}");
        let name = CString::new(peer_name).unwrap();
        let (local, remote) = (self.block(number), peer.block(number));
        let options = make!(nixl_capi_create_opt_args());
        let bytes = message.as_ptr().cast();
        call!(nixl_capi_opt_args_set_notif_msg(
            options,
            bytes,
            message.len()
        ));
        call!(nixl_capi_opt_args_set_has_notif(options, true));
        let mut request: Handle = null_mut();
        call!(nixl_capi_create_xfer_req(
            self.handle,
            READ,
            local,
            remote,
            name.as_ptr(),
            &mut request,
            options
        ));
        call!(nixl_capi_post_xfer_req(self.handle, request, null_mut()));
        while unsafe { nixl_capi_get_xfer_status(self.handle, request) } == IN_PROGRESS {
            sleep(Duration::from_millis(1));
        }
        call!(nixl_capi_get_xfer_status(self.handle, request));
        call!(nixl_capi_release_xfer_req(self.handle, request));
        call!(nixl_capi_destroy_xfer_req(request));
        call!(nixl_capi_destroy_opt_args(options));
        call!(nixl_capi_destroy_xfer_dlist(local));
        call!(nixl_capi_destroy_xfer_dlist(remote));
    }

    /// Wait for a notification: its sender and its text.
    fn notification(&self) -> (String, String) {
        let map = make!(nixl_capi_create_notif_map());
        let (mut senders, mut len) = (0, 0);
        let (mut sender, mut data) = (null(), null());
        while senders == 0 {
            sleep(Duration::from_millis(1));
            call!(nixl_capi_get_notifs(self.handle, map, null_mut()));
            call!(nixl_capi_notif_map_size(map, &mut senders));
        }
        call!(nixl_capi_notif_map_get_agent_at(map, 0, &mut sender));
        call!(nixl_capi_notif_map_get_notif(
            map, sender, 0, &mut data, &mut len
        ));
        let (name, text) = unsafe {
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), len);
            (
                CStr::from_ptr(sender),
                String::from_utf8_lossy(bytes).into_owned(),
            )
        };
        let name = name.to_string_lossy().into_owned();
        call!(nixl_capi_destroy_notif_map(map));
        (name, text)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        unsafe { nixl_capi_destroy_agent(self.handle) };
    }
}

fn main() {
    let (prefill, decode) = (Agent::new("prefill", 7), Agent::new("decode", 0));
    decode.meet(&prefill);
    prefill.meet(&decode);
    decode.read(&prefill, "prefill", 5);
    for (i, byte) in decode.memory.iter().enumerate() {
        assert_eq!(*byte, if i / BLOCK_BYTES == 5 { 7 } else { 0 }, "byte {i}");
    }
    let (sender, text) = prefill.notification();
    println!("{sender} has read {text}");
}
