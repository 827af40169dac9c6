// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage

/// The server's side of the protocol without any input or output: a request goes in, an answer comes
/// out.
///
/// Every command has an answer. Where an error is told, the form is one that each client can read:
/// rust-vmm's client reads replies of fixed size and looks at no error flag, so the commands whose
/// replies have a payload are answered in full even then, with a flag beside it for those who look.
/// The protocol document would have a bare header; QEMU takes both.
///
/// Specification: the protocol document's chapter "Protocol Specification".
final class Session {
    enum Phase: Equatable {
        /// The first message, VERSION, has not come.
        case negotiating
        case ready
        case closed
    }

    /// What becomes of a request.
    enum Disposition {
        /// The reply is written; it may be empty, if none is wanted.
        case answered
        /// The reply is written, and after it the connection ends.
        case refused(String)
    }

    private(set) var phase = Phase.negotiating
    private(set) var client = VersionCapabilities()

    let device: any VFIODevice
    let regions: [RegionDescription]
    let interrupts: [InterruptDescription]
    let logger: Logger

    init(device: any VFIODevice, logger: Logger) {
        self.device = device
        self.logger = logger
        regions = device.regions
        interrupts = device.interrupts
    }

    /// Ends the session; no message is answered any more.
    func close() {
        phase = .closed
    }

    /// Whether a request can be carried out while the device is in the middle of its work.
    func canHandleDuringMemoryAccess(_ command: Command) -> Bool { command != .deviceReset }

    /// Carries out a request.
    func handle(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) -> Disposition {
        reply.removeAll()
        switch phase {
        case .closed: return .refused("a message after the end")
        case .negotiating:
            let disposition = begin(header, payload, into: reply)
            if header.flags.contains(.noReply) { reply.removeAll() }
            return disposition
        case .ready: break
        }

        // A register access, by far the most frequent, comes first.
        switch header.command {
        case .regionRead: readRegion(header, payload, into: reply)
        case .regionWrite: writeRegion(header, payload, into: reply)
        case .regionWriteMulti: writeRegions(header, payload, into: reply)
        case .dmaMap: mapMemory(header, payload, descriptors: &descriptors, into: reply)
        case .dmaUnmap: unmapMemory(header, payload, into: reply)
        case .deviceGetInfo: describeDevice(header, payload, into: reply)
        case .deviceGetRegionInfo: describeRegion(header, payload, into: reply)
        case .deviceGetRegionIOFDs: describeRegionDescriptors(header, payload, into: reply)
        case .deviceGetIRQInfo: describeInterrupt(header, payload, into: reply)
        case .deviceSetIRQs: setInterrupts(header, payload, descriptors: &descriptors, into: reply)
        case .deviceReset:
            // With the reply the client may use all guest memory for something else.
            device.reset()
            start(header, into: reply)
        case .version:
            fail(header, .invalidArgument, into: reply)
        case .deviceFeature:
            // What the kernel's VFIO says of a feature that a device does not have.
            fail(header, .inappropriateIOCTLForDevice, into: reply)
        case .dmaRead, .dmaWrite, .dirtyPages, .migrationDataRead, .migrationDataWrite:
            fail(header, .notSupported, into: reply)
        default:
            logger.debug("unknown command", metadata: ["command": "\(header.command.rawValue)"])
            fail(header, .noFunction, into: reply)
        }
        if header.flags.contains(.noReply) { reply.removeAll() }
        return .answered
    }

    /// Answers a request whose descriptors could not all be received.
    func refuseDescriptors(_ header: MessageHeader, into reply: MessageBuffer) {
        reply.removeAll()
        logger.warning(
            "a message has more descriptors than were agreed on",
            metadata: ["command": "\(header.command.rawValue)"])
        if header.flags.contains(.noReply) { return }
        fail(header, .invalidArgument, into: reply)
    }

    // MARK: - Replies

    /// Begins a successful reply whose size is filled in by ``finish(_:)``.
    func start(
        _ header: MessageHeader, payload: Int = 0, error: Errno? = nil, into reply: MessageBuffer
    ) {
        reply.removeAll()
        reply.append(header.id)
        reply.append(header.command.rawValue)
        reply.append(UInt32(MessageHeader.size + payload))
        reply.append((error == nil ? MessageHeader.Flags.reply : [.reply, .error]).rawValue)
        reply.append(UInt32(bitPattern: error?.rawValue ?? 0))
    }

    /// A reply that is only a header.
    func fail(_ header: MessageHeader, _ error: Errno, into reply: MessageBuffer) {
        logger.debug(
            "refused",
            metadata: ["command": "\(header.command.rawValue)", "reason": "\(error)"])
        start(header, error: error, into: reply)
    }

    // MARK: - VERSION

    private func begin(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Disposition {
        guard header.command == .version else {
            fail(header, .invalidArgument, into: reply)
            return .refused("the first message is command \(header.command.rawValue)")
        }
        return negotiate(header, payload, into: reply)
    }

    private func negotiate(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Disposition {
        guard payload.count >= 4 else {
            fail(header, .invalidArgument, into: reply)
            return .refused("a VERSION message of \(header.size) bytes")
        }
        let major = payload.littleEndian(UInt16.self, at: 0)
        let minor = payload.littleEndian(UInt16.self, at: 2)
        guard major == Self.majorVersion else {
            fail(header, .invalidArgument, into: reply)
            return .refused("the client speaks version \(major).\(minor) of the protocol")
        }
        guard let capabilities = VersionCapabilities(payload.extracting(4..<payload.count)) else {
            fail(header, .invalidArgument, into: reply)
            return .refused("malformed version data")
        }
        client = capabilities
        phase = .ready
        logger.debug(
            "negotiated",
            metadata: [
                "version": "\(major).\(minor)", "descriptors": "\(capabilities.descriptors)",
                "transfer": "\(capabilities.dataTransfer)",
                "memory": "\(capabilities.servesMemory ? "mapped or by messages" : "mapped")",
            ])
        let data = capabilities.reply(longest: payload.count - 4)
        start(header, payload: 4 + data.count, into: reply)
        reply.append(Self.majorVersion)
        reply.append(min(minor, Self.minorVersion))
        reply.append(contentsOf: data)
        return .answered
    }

    static let majorVersion: UInt16 = 0
    static let minorVersion: UInt16 = 1
}
