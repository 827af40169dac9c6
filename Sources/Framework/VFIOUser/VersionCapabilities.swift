// SPDX-License-Identifier: Apache-2.0

/// The capabilities that a client announces in its VERSION message.
///
/// Specification: the protocol document's section "VFIO_USER_VERSION". The names in parentheses are
/// those of the JSON object; members that the server does not need are checked for their form only.
struct VersionCapabilities: Equatable, Sendable {
    /// The number of descriptors that the client accepts with one message (`max_msg_fds`).
    var maxDescriptors: UInt64 = 1
    /// The number of bytes that the client accepts in one message (`max_data_xfer_size`).
    var maxDataTransfer: UInt64 = 1 << 20
    /// The page sizes of DMA mappings, as a bit mask (`pgsizes`).
    var pageSizes: UInt64?
    /// Whether the client sends REGION_WRITE_MULTI (`write_multiple`).
    var writesMultiple = false

    /// Creates the capabilities of a client that announces none.
    init() {}

    /// Reads version data, with or without the terminating NUL. Empty data announces nothing.
    init(_ data: Span<UInt8>) throws(JSONReader.Failure) {
        guard data.count <= VFIOUserLimits.versionData else {
            throw JSONReader.Failure(
                reason: "more than \(VFIOUserLimits.versionData) bytes",
                position: VFIOUserLimits.versionData)
        }
        var bytes = (0..<data.count).map { data[$0] }
        while bytes.last == 0 { bytes.removeLast() }
        if bytes.isEmpty { return }
        var capabilities = VersionCapabilities()
        var reader = JSONReader(bytes, maximumDepth: VFIOUserLimits.versionDataDepth)
        try reader.readObject { (name, reader) throws(JSONReader.Failure) in
            guard name == "capabilities" else { return try reader.skipValue() }
            try reader.readObject { (name, reader) throws(JSONReader.Failure) in
                try capabilities.readMember(name, from: &reader)
            }
        }
        try reader.finish()
        self = capabilities
    }

    private mutating func readMember(
        _ name: String, from reader: inout JSONReader
    ) throws(JSONReader.Failure) {
        switch name {
        case "max_msg_fds": maxDescriptors = try reader.readInteger()
        case "max_data_xfer_size": maxDataTransfer = try reader.readPositiveInteger()
        case "pgsizes": pageSizes = try reader.readInteger()
        case "write_multiple": writesMultiple = try reader.readBoolean()
        default: try reader.skipValue()
        }
    }

    /// Whether the client replies to DMA_READ and DMA_WRITE.
    ///
    /// The client of rust-vmm, which Cloud Hypervisor uses, takes every message that arrives for
    /// the reply to its last request, so it must never be sent a request. It announces one
    /// descriptor and no page sizes; other clients that announce the same are treated alike.
    var servesMemory: Bool { pageSizes != nil || maxDescriptors > 1 }

    /// The version data of the reply, with the terminating NUL.
    ///
    /// QEMU receives the reply into the buffer of its request. The optional members are left out if
    /// the data would be longer than `limit`; the rest is shorter than the data of all known
    /// clients.
    func reply(limit: Int) -> [UInt8] {
        let required = """
            "max_msg_fds":\(VFIOUserLimits.descriptors),"max_data_xfer_size":\(VFIOUserLimits.dataTransfer)
            """
        let optional = """
            ,"pgsizes":4096,"max_dma_maps":65535\(writesMultiple ? ",\"write_multiple\":true" : "")
            """
        let whole = Array("{\"capabilities\":{\(required)\(optional)}}\0".utf8)
        return whole.count <= limit ? whole : Array("{\"capabilities\":{\(required)}}\0".utf8)
    }
}

extension JSONReader {
    /// Reads an integer other than 0.
    fileprivate mutating func readPositiveInteger() throws(Failure) -> UInt64 {
        let value = try readInteger()
        guard value > 0 else { throw failure("a size of 0") }
        return value
    }
}
