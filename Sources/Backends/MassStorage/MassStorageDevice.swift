// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage
internal import USB

/// The mass storage device: joins control pipe, transport, logical unit and image.
///
/// Transfers wait in ``MassStoragePipes``, and ``advance()`` processes those that can be processed
/// now. The event loop moves data straight between the image and a transfer's buffer if that does
/// not wait for a disk; otherwise the worker moves the data through the ``StagingBuffer``.
///
/// The worker has at most one job of a command. Until it has ended, no other command starts and no
/// other data transfer is processed, so commands take effect in the guest's order. Control
/// requests, and requests and replies of UAS, are processed meanwhile. A cancelled transfer
/// completes at once; only its successors wait for the job.
final class MassStorageDevice: USBDevice {
    let speed: USBSpeed
    var summary: String

    var image: any DiskImage
    let worker: Worker
    let logger: Logger
    /// The port, while the device is attached.
    private var port: (any USBPort)?
    var pipes: MassStoragePipes
    var unit: LogicalUnit

    /// The current command, if it has a data stage.
    var command: Command?
    /// The worker has a job of a command, possibly of one that has been aborted.
    var isBusy = false
    /// The data transfer of the worker's job; `nil` once it is cancelled.
    var pending: PendingTransfer?
    private(set) lazy var staging = StagingBuffer(capacity: MassStorageLimits.chunkBytes)
    /// Cancels the medium operation that the worker runs.
    var cancellation: Cancellation?
    /// The operator is changing the medium; see ``changeMedium(to:force:completion:)``.
    var isChangingMedium = false
    /// The worker runs a flush whose command has already ended with GOOD status.
    private var isFlushingInBackground = false
    /// The lost writes of the current image.
    var lostWrites = LostWrites()
    /// The tag of the UAS command whose status reports lost writes.
    private var lostWritesTag: UInt16?
    /// An error has been logged as a warning. Later ones are debug messages, so a guest cannot fill
    /// the log.
    private var hasLoggedError = false
    /// Incremented when the transport is reset or the current command aborted; jobs of an earlier
    /// generation have no effect on the command.
    private var generation: UInt64 = 0
    /// Whether the file system supports reads and writes that fail instead of waiting for a disk.
    var supportsNonblockingReads = true
    var supportsNonblockingWrites = true

    /// A command with a data stage.
    enum Command {
        case reply([UInt8])
        case read(Extent)
        case write(Extent, durably: Bool)
        case compare(Extent)
        /// The part of a parameter list that has been received.
        case parameters(CommandDescriptorBlock, [UInt8])
    }

    init(
        image: any DiskImage, unit: LogicalUnit, speed: USBSpeed, offersUAS: Bool, summary: String,
        worker: Worker, logger: Logger
    ) {
        self.image = image
        self.unit = unit
        self.speed = speed
        self.summary = summary
        self.worker = worker
        self.logger = logger
        pipes = MassStoragePipes(
            control: DefaultControlPipe(
                MassStorageDescriptors.description(
                    speed: speed, identity: unit.identity, offersUAS: offersUAS)),
            maxPacketSize: MassStorageDescriptors.maxPacketSize(at: speed))
    }

    /// Whether the worker has no job of this device.
    var isIdle: Bool { worker.pendingJobs == 0 }

    // MARK: - USBDevice

    func attach(to port: any USBPort) {
        self.port = port
        restart()
    }

    func detached() {
        port = nil
        _ = pipes.removeAll()
        pipes.setStreams(0, for: MassStorageDescriptors.statusEndpoint)
        restart()
    }

    func reset() {
        let waiting = pipes.removeAll()
        restart()
        for transfer in waiting { complete(transfer.id, .cancelled, 0) }
    }

    /// Returns to the power-on state. A job of the worker runs to its end.
    private func restart() {
        pipes.control.reset()
        unit.reset()
        resetTransport()
    }

    private func resetTransport() {
        generation += 1
        cancellation?.cancel()
        command = nil
        lostWritesTag = nil
        endPending(.cancelled)
        for transfer in pipes.reset() { complete(transfer.id, .failed, 0) }
        unit.supportsCommandQueuing = pipes.usesUAS
    }

    func submit(_ transfer: consuming Transfer) {
        let id = transfer.id
        if case .control(let setup) = transfer.kind {
            control(transfer, setup)
        } else if !pipes.enqueue(transfer) {
            complete(id, .failed, 0)
        }
        advance()
    }

    func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        pipes.setStreams(count, for: endpoint)
    }

    func cancel(_ id: Transfer.ID) {
        if !cancelPending(id), pipes.remove(id) { complete(id, .cancelled, 0) }
    }

    // MARK: - Control pipe

    private func control(_ transfer: Transfer, _ setup: SetupPacket) {
        switch pipes.control.handle(transfer, setup) {
        case .answered(let completion, let change):
            port?.complete(completion)
            switch change {
            case .configuration, .alternateSetting: resetTransport()
            case .haltCleared where pipes.bulkOnly.phase == .resetRequired:
                // The halts stay until the transport is reset (6.6.1).
                pipes.control.halt(MassStorageDescriptors.inEndpoint)
                pipes.control.halt(MassStorageDescriptors.outEndpoint)
            default: break
            }
        case .forDevice: classRequest(transfer, setup)
        }
    }

    /// The class requests of Bulk-Only Transport: Bulk-Only Mass Storage Reset (3.1), Get Max LUN
    /// (3.2).
    private func classRequest(_ transfer: Transfer, _ setup: SetupPacket) {
        let isSupported =
            setup.kind == .class && setup.recipient == .interface && setup.index == 0
            && setup.value == 0 && pipes.control.configuration != 0 && !pipes.usesUAS
        switch (setup.request, setup.direction, setup.length) {
        case (0xff, .out, 0) where isSupported:
            logger.debug("\(summary): the guest resets the bulk-only transport")
            resetTransport()
            complete(transfer.id, .completed, 0)
        case (0xfe, .in, 1...) where isSupported:
            port?.complete(transfer.completion(sending: [0], for: setup))
        default:
            complete(transfer.id, .stalled, 0)
        }
    }

    // MARK: - Bulk pipes

    /// Processes waiting transfers until the next one has to wait.
    func advance() {
        while let step = isBusy ? pipes.nextWhileBusy() : pipes.next() { execute(step) }
    }

    private func execute(_ step: consuming MassStoragePipes.Step) {
        switch consume step {
        case .command(let transfer): receiveCommand(transfer)
        case .request(let transfer): receiveRequest(transfer)
        case .begin(let command): begin(command)
        case .receive(let transfer, let count): receiveData(transfer, count: count)
        case .send(let transfer, let count): sendData(transfer, count: count)
        case .status(let transfer, let count, let reply):
            complete(transfer.id, .completed, count)
            if let reply, lostWritesTag == reply.tag { lostWritesReported(reply) }
        case .discard(let transfer): complete(transfer.id, .completed, 0)
        case .fail(let transfer): complete(transfer.id, .failed, 0)
        case .stall(let transfer): complete(transfer.id, .stalled, 0)
        case .babble(let transfer): complete(transfer.id, .babbled, transfer.buffer.count)
        case .phaseError(let transfer):
            complete(transfer.id, pipes.statusOfExcess, 0)
            if pipes.usesUAS { return finish(.dataPhaseError) }
            command = nil
            pipes.finishWithPhaseError()
        }
    }

    func complete(_ id: Transfer.ID, _ status: Transfer.Status, _ count: Int) {
        port?.complete(Transfer.Completion(id: id, status: status, transferred: count))
    }

    // MARK: - Commands

    private func receiveCommand(_ transfer: Transfer) {
        // A CBW has 31 bytes. A 32nd byte shows that the transfer is no CBW.
        let (bytes, count) = transfer.buffer.beginning
        guard let wrapper = pipes.receiveCommand(bytes.span.extracting(first: count)) else {
            logger.debug("\(summary): the guest sent an invalid command block wrapper")
            complete(transfer.id, .stalled, 0)
            return
        }
        complete(transfer.id, .completed, CommandBlockWrapper.count)
        begin(unit.execute(wrapper.command, at: wrapper.logicalUnit), wrapper.command)
    }

    /// Receives an information unit of UAS: queues a command, or executes a task management
    /// function.
    private func receiveRequest(_ transfer: Transfer) {
        let (bytes, count) = transfer.buffer.beginning
        switch pipes.receiveRequest(bytes.span.extracting(first: count)) {
        case .none: break
        case .abort: abortCommand()
        case .reset:
            abortCommand()
            unit.resetUnit()
        case .refuse:
            logger.debug("\(summary): the guest sent a UAS request without a valid tag")
            return complete(transfer.id, .stalled, 0)
        }
        complete(transfer.id, .completed, transfer.buffer.count)
    }

    /// Aborts the current command. A job of the worker runs to its end, and the next command waits
    /// for it.
    private func abortCommand() {
        command = nil
        endPending(.completed)
        guard isBusy else { return }
        generation += 1
        cancellation?.cancel()
    }

    /// Starts a command of UAS.
    private func begin(_ command: UASTransport.Command) {
        var action = unit.execute(command.cdb, at: command.unit)
        if pipes.uas.isStale(command), action.accessesMedium {
            action = .checkCondition(.mediumNotPresent)
        }
        begin(action, command.cdb)
    }

    /// Starts an action of the logical unit, if the host expects its data stage.
    private func begin(_ action: LogicalUnit.Action, _ cdb: CommandDescriptorBlock) {
        guard pipes.begin(DataStage(action)) else { return }
        switch action {
        case .good: finish(nil)
        case .reply(let bytes):
            if bytes.isEmpty { finish(nil) } else { command = .reply(bytes) }
        case .read(let extent): command = .read(extent)
        case .write(let extent, let durably): command = .write(extent, durably: durably)
        case .compare(let extent): command = .compare(extent)
        case .receiveParameters: command = .parameters(cdb, [])
        case .operation(let operation): run(operation)
        case .checkCondition(let sense): finish(sense)
        }
    }

    /// Ends the command with GOOD status, or with CHECK CONDITION and its sense data.
    func finish(_ error: SenseData?) {
        command = nil
        if pipes.usesUAS {
            // The status contains the sense data.
            unit.clearSense()
            // The data transfers of a command complete before its status.
            for transfer in pipes.takeUnusedData() { complete(transfer.id, .completed, 0) }
        } else if let error {
            unit.setSense(error)
        }
        pipes.finish(error)
    }

    // MARK: - Medium operations

    /// Runs a medium operation on the worker.
    func run(_ operation: MediumOperation) {
        // At most one background flush runs: a second command gets its status after its flush.
        if operation == .flushInBackground && !isFlushingInBackground {
            return flushInBackground()
        }
        let cancellation = Cancellation()
        self.cancellation = cancellation
        let durably = !unit.isWriteCacheEnabled
        runOnWorker { [image, lostWrites] in
            image.run(operation, durably: durably, cancellation: cancellation, lostWrites)
        } completion: { [self] error in
            // Only a removal of the medium cancels an operation without aborting its command.
            if cancellation.isCancelled { return finish(.mediumNotPresent) }
            if error == nil {
                unit.mediumOperationCompleted(operation)
            } else {
                logError("\(operation.displayName) failed")
                if pipes.usesUAS { lostWritesTag = pipes.uas.current } else { lostWrites.clear() }
            }
            finish(error)
        }
    }

    /// Ends the command with GOOD status and flushes the image on the worker.
    private func flushInBackground() {
        isFlushingInBackground = true
        worker.run { [image, lostWrites] in
            image.run(
                .flushInBackground, durably: false, cancellation: Cancellation(), lostWrites)
        } completion: { [self] error in
            isFlushingInBackground = false
            guard let error else { return }
            logError("\(MediumOperation.flushInBackground.displayName) failed")
            unit.backgroundFlushFailed(error)
        }
        finish(nil)
    }

    /// Clears the lost writes, if the host has fetched a UAS status that reports them. A host may
    /// abort the command before; in Bulk-Only Transport the error counts as reported at once.
    private func lostWritesReported(_ reply: UASReply) {
        lostWritesTag = nil
        if case .checkCondition = reply.content { lostWrites.clear() }
    }

    func logError(_ message: String) {
        logger.log(level: hasLoggedError ? .debug : .warning, "\(summary): \(message)")
        hasLoggedError = true
    }

    // MARK: - Worker

    /// Runs a job of the current command on the worker. No other command or data transfer is
    /// processed until it has ended.
    ///
    /// If the transport has been reset or the command aborted meanwhile, the result is dropped.
    /// Jobs run in the order of submission, so the jobs of later commands see the effects of this
    /// one.
    ///
    /// - Parameter completion: continues the command on the event loop.
    func runOnWorker<Result: Sendable>(
        _ job: @escaping @Sendable () -> Result, completion: @escaping (Result) -> Void
    ) {
        isBusy = true
        let generation = generation
        worker.run(job) { [self] result in
            isBusy = false
            if generation == self.generation {
                completion(result)
                // A command that continues with another job checks for a medium change itself.
                if isChangingMedium, !isBusy { failMediumCommand() }
            }
            advance()
        }
    }
}

extension TransferBuffer {
    /// The first 32 bytes, padded with zeroes, and how many of them are in the buffer.
    fileprivate var beginning: (bytes: InlineArray<32, UInt8>, count: Int) {
        let bytes = InlineArray<32, UInt8> { (bytes: inout OutputSpan<UInt8>) in
            copy(into: &bytes)
            while !bytes.isFull { bytes.append(0) }
        }
        return (bytes, min(count, bytes.count))
    }
}

extension LogicalUnit.Action {
    /// Whether the action reads or changes the contents of the medium.
    fileprivate var accessesMedium: Bool {
        switch self {
        case .good, .reply, .checkCondition: false
        case .read, .write, .compare, .receiveParameters, .operation: true
        }
    }
}
