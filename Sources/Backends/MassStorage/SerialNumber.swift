// SPDX-License-Identifier: Apache-2.0

/// Default serial numbers of sticks.
enum SerialNumber {
    /// The FNV-1a hash of a path in 16 hexadecimal digits; Bulk-Only Transport 4.1.1 requires at
    /// least 12. It is the same for the same path, so a guest recognizes its stick.
    static func derived(from text: String) -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in text.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        let digits = String(hash, radix: 16, uppercase: true)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
