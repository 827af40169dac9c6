// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage

/// The server's side of the protocol, without input and output: it handles a request and writes the
/// reply.
///
/// Every request has a reply. A failed request is answered in a form that all clients understand:
/// the client of rust-vmm reads replies of fixed size and ignores the error flag, so a reply that
/// has a payload keeps it, with the error flag set. The protocol document specifies a header alone
/// in this case; QEMU accepts both.
///
/// Specification: the protocol document's chapter "Protocol Specification".
final class Session {
    enum Phase: Equatable {
        /// VERSION, the first message, has not been received.
        case negotiating
        case ready
        case closed
    }

    /// The result of handling a request.
    enum Result {
        /// The reply is written. It is empty if the client expects none.
        case replied
        /// The reply is written, and the connection must end after it. The value is the reason.
        case refused(String)
    }

    private(set) var phase = Phase.negotiating
    /// The client's capabilities; the defaults until VERSION has been received.
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

    /// Ends the session: later requests get no reply.
    func close() {
        phase = .closed
    }

    /// Whether a command can be handled while the device accesses guest memory. DEVICE_RESET
    /// changes the state that the device is working on.
    func canHandleDuringMemoryAccess(_ command: Command) -> Bool { command != .deviceReset }

    /// Handles a request.
    func handle(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) -> Result {
        reply.removeAll()
        switch phase {
        case .closed: return .refused("\(header.command) after the end of the session")
        case .negotiating:
            let result = negotiate(header, payload, into: reply)
            if header.flags.contains(.noReply) { reply.removeAll() }
            return result
        case .ready: break
        }

        // Register accesses, by far the most frequent requests, come first.
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
            // After the reply the client may use all guest memory for something else.
            device.reset()
            start(header, into: reply)
        case .version:
            fail(header, .invalidArgument, into: reply)
        case .deviceFeature:
            // The error of the kernel's VFIO for a feature that a device does not have.
            fail(header, .inappropriateIOCTLForDevice, into: reply)
        case .dmaRead, .dmaWrite, .dirtyPages, .migrationDataRead, .migrationDataWrite:
            fail(header, .notSupported, into: reply)
        default: fail(header, .noFunction, into: reply)
        }
        if header.flags.contains(.noReply) { reply.removeAll() }
        return .replied
    }

    /// Answers a request that arrived with too many descriptors.
    func refuseDescriptors(_ header: MessageHeader, into reply: MessageBuffer) {
        reply.removeAll()
        logger.warning(
            "refused \(header.command) with more than \(VFIOUserLimits.descriptors) descriptors")
        if header.flags.contains(.noReply) { return }
        fail(header, .invalidArgument, into: reply)
    }

    // MARK: - Replies

    /// Writes the header of a reply.
    ///
    /// - Parameters:
    ///   - header: the header of the request.
    ///   - payload: the size in bytes of the payload, which the caller appends.
    ///   - error: sets the error flag.
    ///   - reply: emptied first.
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

    /// Writes the reply to a failed request: a header alone.
    func fail(_ header: MessageHeader, _ error: Errno, into reply: MessageBuffer) {
        logger.debug("\(header.command) failed: \(error)")
        start(header, error: error, into: reply)
    }

    // MARK: - VERSION

    private func negotiate(
        _ header: MessageHeader, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Result {
        guard header.command == .version else {
            fail(header, .invalidArgument, into: reply)
            return .refused("the first message is \(header.command), not VERSION")
        }
        guard payload.count >= 4 else {
            fail(header, .invalidArgument, into: reply)
            return .refused("VERSION with \(header.size) bytes")
        }
        let major = payload.littleEndian(UInt16.self, at: 0)
        let minor = payload.littleEndian(UInt16.self, at: 2)
        guard major == Self.majorVersion else {
            fail(header, .invalidArgument, into: reply)
            return .refused(
                "protocol version \(major).\(minor) instead of \(Self.majorVersion).x")
        }
        let capabilities: VersionCapabilities
        do throws(JSONReader.Failure) {
            capabilities = try VersionCapabilities(payload.extracting(4..<payload.count))
        } catch {
            fail(header, .invalidArgument, into: reply)
            return .refused("malformed version data: \(error)")
        }
        client = capabilities
        phase = .ready
        logger.debug(
            """
            the client speaks version \(major).\(minor), accepts \(capabilities.maxDescriptors) \
            descriptors and \(capabilities.maxDataTransfer) bytes a message, and serves \
            \(capabilities.servesMemory ? "all guest memory" : "guest memory with descriptors only")
            """)
        let data = capabilities.reply(limit: payload.count - 4)
        start(header, payload: 4 + data.count, into: reply)
        reply.append(Self.majorVersion)
        reply.append(min(minor, Self.minorVersion))
        reply.append(contentsOf: data)
        return .replied
    }

    static let majorVersion: UInt16 = 0
    static let minorVersion: UInt16 = 1
}
