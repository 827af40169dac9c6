// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Platform
internal import SystemPackage

/// A file with a fault script.
enum FaultFile {
    /// The text of the file at `path`.
    static func text(_ path: String) throws(BackendError) -> String {
        let bytes: [UInt8]
        do throws(Errno) {
            let file = try RandomAccessFile(opening: path, [])
            // Reads one byte more than the limit, to detect a file that is too large.
            bytes = try file.contents(atMost: LoopbackLimits.faultScript + 1)
        } catch {
            throw BackendError("cannot read the faults in '\(path)': \(error)")
        }
        guard bytes.count <= LoopbackLimits.faultScript else {
            throw BackendError("'\(path)' has more than \(LoopbackLimits.faultScript) bytes")
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw BackendError("'\(path)' is not a text in UTF-8")
        }
        return text
    }
}
