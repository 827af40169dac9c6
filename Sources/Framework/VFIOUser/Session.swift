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
        /// The reply comes later, by ``sendLater``.
        case delayed(DelayedReply)
        /// The reply is written, and after it the connection ends.
        case refused(String)
    }

    /// An answer that waits for memory to be out of use.
    final class DelayedReply {
        fileprivate let header: Header
        /// What the reply repeats; that to DEVICE_RESET is a header alone.
        fileprivate let request: DMAUnmapRequest?
        fileprivate(set) var isFinished = false
        fileprivate var isDelayed = false
        /// Ends the wait when it takes too long; held here so that it ends with the reply.
        var timer: Watch?

        fileprivate init(header: Header, request: DMAUnmapRequest? = nil) {
            self.header = header
            self.request = request
        }
    }

    private(set) var phase = Phase.negotiating
    private(set) var client = VersionCapabilities()
    /// Sends a reply that was delayed.
    var sendLater: ((MessageBuffer) -> Void)?
    /// Replies that are delayed now.
    private(set) var delayedReplies = 0

    private let device: any VFIODevice
    private let regions: [RegionDescription]
    private let interrupts: [InterruptDescription]
    private let logger: Logger
    private let lateReply = MessageBuffer(capacity: Header.size + DMAUnmapRequest.size)

    init(device: any VFIODevice, logger: Logger) {
        self.device = device
        self.logger = logger
        regions = device.regions
        interrupts = device.interrupts
    }

    /// No message is answered any more, nor a delayed reply sent.
    func close() {
        phase = .closed
        sendLater = nil
    }

    /// Whether a request can be carried out while the device is in the middle of its work.
    func canHandleDuringMemoryAccess(_ command: Command) -> Bool { command != .deviceReset }

    /// Carries out a request.
    func handle(
        _ header: Header, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
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
        case .dmaUnmap: return unmapMemory(header, payload, into: reply)
        case .deviceGetInfo: describeDevice(header, payload, into: reply)
        case .deviceGetRegionInfo: describeRegion(header, payload, into: reply)
        case .deviceGetRegionIOFDs: describeRegionDescriptors(header, payload, into: reply)
        case .deviceGetIRQInfo: describeInterrupt(header, payload, into: reply)
        case .deviceSetIRQs: setInterrupts(header, payload, descriptors: &descriptors, into: reply)
        case .deviceReset: return resetDevice(header, into: reply)
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
    func refuseDescriptors(_ header: Header, into reply: MessageBuffer) {
        reply.removeAll()
        logger.warning(
            "a message has more descriptors than were agreed on",
            metadata: ["command": "\(header.command.rawValue)"])
        if header.flags.contains(.noReply) { return }
        fail(header, .invalidArgument, into: reply)
    }

    // MARK: - Replies

    /// Begins a successful reply whose size is filled in by ``finish(_:)``.
    private func start(
        _ header: Header, payload: Int = 0, error: Errno? = nil, into reply: MessageBuffer
    ) {
        reply.removeAll()
        reply.append(header.id)
        reply.append(header.command.rawValue)
        reply.append(UInt32(Header.size + payload))
        reply.append((error == nil ? Header.Flags.reply : [.reply, .error]).rawValue)
        reply.append(UInt32(bitPattern: error?.rawValue ?? 0))
    }

    /// A reply that is only a header.
    private func fail(_ header: Header, _ error: Errno, into reply: MessageBuffer) {
        logger.debug(
            "refused",
            metadata: ["command": "\(header.command.rawValue)", "reason": "\(error)"])
        start(header, error: error, into: reply)
    }

    // MARK: - VERSION

    private func begin(
        _ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Disposition {
        guard header.command == .version else {
            fail(header, .invalidArgument, into: reply)
            return .refused("the first message is command \(header.command.rawValue)")
        }
        return negotiate(header, payload, into: reply)
    }

    private func negotiate(
        _ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Disposition {
        guard payload.count >= 4 else {
            fail(header, .invalidArgument, into: reply)
            return .refused("a VERSION message of \(header.size) bytes")
        }
        let major = payload.integer(UInt16.self, at: 0)
        let minor = payload.integer(UInt16.self, at: 2)
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

    // MARK: - Regions

    private func readRegion(_ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionAccess.size else {
            return fail(header, .invalidArgument, into: reply)
        }
        let access = RegionAccess(payload)
        guard access.count <= Limits.dataTransfer else {
            return fail(header, .invalidArgument, into: reply)
        }
        let count = Int(access.count)
        let offset = checkedOffset(access) { $0.isReadable }
        start(
            header, payload: RegionAccess.size + count,
            error: offset == nil ? .invalidArgument : nil, into: reply)
        repeatFields(of: access, into: reply)
        reply.fill(count, rest: 0xff) { bytes in
            guard let offset, count > 0 else { return }
            device.readRegion(Int(access.region), at: offset, into: &bytes)
        }
    }

    private func writeRegion(_ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionAccess.size else {
            return fail(header, .invalidArgument, into: reply)
        }
        let access = RegionAccess(payload)
        let isDone =
            payload.count - RegionAccess.size == access.count
            && write(access, payload.extracting(RegionAccess.size..<payload.count))
        start(
            header, payload: RegionAccess.size, error: isDone ? nil : .invalidArgument,
            into: reply)
        repeatFields(of: access, into: reply)
    }

    private func writeRegions(_ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer) {
        guard payload.count >= RegionWriteMulti.headerSize,
            payload.integer(UInt64.self, at: 0)
                <= (payload.count - RegionWriteMulti.headerSize) / RegionWriteMulti.elementSize
        else { return fail(header, .invalidArgument, into: reply) }
        let count = Int(payload.integer(UInt64.self, at: 0))
        var done: UInt64 = 0
        for index in 0..<count {
            let place = RegionWriteMulti.headerSize + index * RegionWriteMulti.elementSize
            let access = RegionAccess(payload, at: place)
            guard access.count <= RegionWriteMulti.longestData else { continue }
            let data = place + RegionAccess.size
            if write(access, payload.extracting(data..<data + Int(access.count))) { done += 1 }
        }
        start(
            header, payload: 8, error: done == count ? nil : .invalidArgument, into: reply)
        reply.append(done)
    }

    private func write(_ access: RegionAccess, _ data: Span<UInt8>) -> Bool {
        guard let offset = checkedOffset(access, { $0.isWritable }) else { return false }
        if data.count > 0 { device.writeRegion(Int(access.region), at: offset, from: data) }
        return true
    }

    /// The offset, if the access lies in a region that allows it.
    private func checkedOffset(
        _ access: RegionAccess, _ isAllowed: (RegionDescription) -> Bool
    ) -> Int? {
        guard let region = Int(exactly: access.region), region < regions.count,
            isAllowed(regions[region]), access.offset <= regions[region].size,
            access.count <= regions[region].size - access.offset
        else { return nil }
        return Int(exactly: access.offset)
    }

    private func repeatFields(of access: RegionAccess, into reply: MessageBuffer) {
        reply.append(access.offset)
        reply.append(access.region)
        reply.append(access.count)
    }

    // MARK: - Description

    private func describeDevice(_ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer)
    {
        guard payload.count >= 16 else { return fail(header, .invalidArgument, into: reply) }
        start(header, payload: 16, into: reply)
        reply.append(16 as UInt32)
        // VFIO_DEVICE_FLAGS_RESET and VFIO_DEVICE_FLAGS_PCI.
        reply.append(0b11 as UInt32)
        reply.append(UInt32(regions.count))
        reply.append(UInt32(interrupts.count))
    }

    /// An index that the device does not have is a region of size zero: an error would be read as the
    /// description of something.
    private func describeRegion(_ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer)
    {
        guard payload.count >= 32 else { return fail(header, .invalidArgument, into: reply) }
        let index = payload.integer(UInt32.self, at: 8)
        let region = index < regions.count ? regions[Int(index)] : .absent
        // Bit 0 is VFIO_REGION_INFO_FLAG_READ, bit 1 WRITE. Never MMAP: QEMU would give up posted
        // writes for the whole device.
        let flags: UInt32 = (region.isReadable ? 1 : 0) | (region.isWritable ? 2 : 0)
        start(header, payload: 32, into: reply)
        reply.append(32 as UInt32)
        reply.append(region.size == 0 ? 0 : flags)
        reply.append(index)
        reply.append(0 as UInt32)
        reply.append(region.size)
        reply.append(0 as UInt64)
    }

    private func describeRegionDescriptors(
        _ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) {
        guard payload.count >= 16, payload.integer(UInt32.self, at: 8) < regions.count else {
            return fail(header, .invalidArgument, into: reply)
        }
        start(header, payload: 16, into: reply)
        reply.append(16 as UInt32)
        reply.append(0 as UInt32)
        reply.append(payload.integer(UInt32.self, at: 8))
        reply.append(0 as UInt32)
    }

    private func describeInterrupt(
        _ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) {
        guard payload.count >= 16 else { return fail(header, .invalidArgument, into: reply) }
        let index = payload.integer(UInt32.self, at: 8)
        let interrupt = index < interrupts.count ? interrupts[Int(index)] : .absent
        start(header, payload: 16, into: reply)
        reply.append(16 as UInt32)
        reply.append(interrupt.count == 0 ? 0 : interrupt.flags.rawValue)
        reply.append(index)
        reply.append(UInt32(interrupt.count))
    }

    // MARK: - Interrupts

    private func setInterrupts(
        _ header: Header, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) {
        do throws(Errno) {
            guard let request = SetIRQsRequest(payload) else { throw .invalidArgument }
            try carryOut(
                request, payload.extracting(SetIRQsRequest.size..<payload.count), &descriptors)
            start(header, into: reply)
        } catch {
            fail(header, error, into: reply)
        }
    }

    private func carryOut(
        _ request: SetIRQsRequest, _ data: Span<UInt8>, _ descriptors: inout DescriptorList
    ) throws(Errno) {
        guard request.index < interrupts.count else { throw .invalidArgument }
        let type = interrupts[request.index]
        let action: InterruptAction
        switch request.flags.intersection(.anyAction) {
        case .actionMask: action = .mask
        case .actionUnmask: action = .unmask
        case .actionTrigger: action = .trigger
        default: throw .invalidArgument
        }
        let form = request.flags.intersection(.anyData)
        guard request.flags.subtracting([.anyAction, .anyData]).isEmpty,
            form == .dataEventFD || descriptors.isEmpty
        else { throw .invalidArgument }

        if request.count == 0 {
            // No vector at all means every vector, but only in this one form.
            guard form == .dataNone, action == .trigger, request.start == 0 else {
                throw .invalidArgument
            }
            for vector in 0..<type.count {
                device.setInterrupt(request.index, vector: vector, to: nil)
            }
            return
        }
        // Both come from 32 bits and cannot overflow 64.
        guard request.start + request.count <= type.count else { throw .invalidArgument }
        if action != .trigger, !type.flags.contains(.maskable) { throw .notSupported }

        switch form {
        case .dataNone:
            for vector in request.start..<request.start + request.count {
                device.changeInterrupt(request.index, vector: vector, action)
            }
        case .dataBool:
            guard data.count >= request.count else { throw .invalidArgument }
            for place in 0..<request.count where data[place] != 0 {
                device.changeInterrupt(request.index, vector: request.start + place, action)
            }
        case .dataEventFD:
            // To be told of masking is not offered.
            guard action == .trigger else { throw .notSupported }
            // None at all takes the vectors' eventfds away.
            guard descriptors.isEmpty || descriptors.count == request.count else {
                throw .invalidArgument
            }
            for place in 0..<request.count {
                device.setInterrupt(
                    request.index, vector: request.start + place, to: descriptors.take(place))
            }
        default: throw .invalidArgument
        }
    }

    // MARK: - Reset

    /// The client may load the next guest as soon as it has the reply.
    private func resetDevice(_ header: Header, into reply: MessageBuffer) -> Disposition {
        let delayed = DelayedReply(header: header)
        device.reset { [weak self] in self?.complete(delayed, error: nil) }
        return delayed.isFinished ? answered(delayed, nil, into: reply) : delay(delayed)
    }

    // MARK: - Memory

    private func mapMemory(
        _ header: Header, _ payload: Span<UInt8>, descriptors: inout DescriptorList,
        into reply: MessageBuffer
    ) {
        do throws(Errno) {
            guard let request = DMAMapRequest(payload), descriptors.count <= 1 else {
                throw .invalidArgument
            }
            let access = MemoryAccess(rawValue: request.flags).intersection([.read, .write])
            guard !access.isEmpty, request.count > 0,
                !request.address.addingReportingOverflow(request.count - 1).overflow
            else { throw .invalidArgument }
            logger.debug(
                "memory added",
                metadata: [
                    "address": "0x\(String(request.address, radix: 16))",
                    "count": "0x\(String(request.count, radix: 16))",
                    "mapped": "\(!descriptors.isEmpty)",
                ])
            try device.mapMemory(
                descriptors.take(0), offset: request.offset, at: request.address,
                count: request.count, access: access)
            start(header, into: reply)
        } catch {
            logger.warning("memory is not added", metadata: ["reason": "\(error)"])
            fail(header, error, into: reply)
        }
    }

    private func unmapMemory(
        _ header: Header, _ payload: Span<UInt8>, into reply: MessageBuffer
    ) -> Disposition {
        guard let request = DMAUnmapRequest(payload) else {
            fail(header, .invalidArgument, into: reply)
            if header.flags.contains(.noReply) { reply.removeAll() }
            return .answered
        }
        let delayed = DelayedReply(header: header, request: request)
        var failure: Errno?
        do throws(Errno) {
            try startUnmapping(request) { [weak self] in self?.complete(delayed, error: nil) }
        } catch {
            failure = error
            delayed.isFinished = true
        }
        return delayed.isFinished ? answered(delayed, failure, into: reply) : delay(delayed)
    }

    private func startUnmapping(
        _ request: DMAUnmapRequest, whenFinished finished: @escaping () -> Void
    ) throws(Errno) {
        logger.debug(
            "memory removed",
            metadata: [
                "address": "0x\(String(request.address, radix: 16))",
                "count": "0x\(String(request.count, radix: 16))",
            ])
        switch request.flags {
        case []:
            try device.unmapMemory(
                at: request.address, count: request.count, whenFinished: finished)
        case .all:
            guard request.address == 0, request.count == 0 else { throw .invalidArgument }
            device.unmapAllMemory(whenFinished: finished)
        case .getDirtyBitmap: throw .notSupported
        default: throw .invalidArgument
        }
    }

    // MARK: - Delayed replies

    private func delay(_ delayed: DelayedReply) -> Disposition {
        delayed.isDelayed = true
        delayedReplies += 1
        return .delayed(delayed)
    }

    /// Sends a reply that was delayed, unless it has been sent.
    func complete(_ delayed: DelayedReply, error: Errno?) {
        guard !delayed.isFinished else { return }
        delayed.isFinished = true
        delayed.timer = nil
        guard delayed.isDelayed else { return }
        delayedReplies -= 1
        _ = answered(delayed, error, into: lateReply)
        sendLater?(lateReply)
    }

    private func answered(
        _ delayed: DelayedReply, _ error: Errno?, into reply: MessageBuffer
    ) -> Disposition {
        reply.removeAll()
        if delayed.header.flags.contains(.noReply) { return .answered }
        guard let request = delayed.request else {
            start(delayed.header, error: error, into: reply)
            return .answered
        }
        start(delayed.header, payload: DMAUnmapRequest.size, error: error, into: reply)
        reply.append(UInt32(DMAUnmapRequest.size))
        reply.append(request.flags.rawValue)
        reply.append(request.address)
        reply.append(request.count)
        return .answered
    }
}
