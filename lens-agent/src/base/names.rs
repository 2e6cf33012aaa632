//! How names of hosts are looked up.

/// Names are looked up in /etc/hosts and by DNS, whatever /etc/nsswitch.conf says.
///
/// A static binary holds these two ways itself, so that they work without any library in an image.
/// The others are libraries of the host, made for the libc of the host: loading one into a binary
/// with another libc can end the process.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub fn resolve_without_modules() {
    #[expect(unsafe_code, reason = "nss.h has no safe wrapper")]
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const std::ffi::c_char,
            services: *const std::ffi::c_char,
        ) -> std::ffi::c_int;
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: both are C strings that live for ever, and libc locks its own table.
        #[expect(unsafe_code, reason = "nss.h has no safe wrapper")]
        let _ = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    });
}

/// A binary that is linked to the host's libc looks names up as the host does.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub fn resolve_without_modules() {}
